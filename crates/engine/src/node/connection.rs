//! Who may talk, and who answers which frame.

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};
use swarmmq_protocol::{
    error::{Code, Outcome as Fate},
    frame::{
        self, Answer as Reply, Body, Frame, FrameError, FrameHeader, FrameKind, GoAway, Pong, Publish,
        Refused,
    },
    id::ShardId,
    limits::SEQUENCE_MAX,
    session::{
        guard::Source,
        handshake::{HandshakeError, ServerHandshake},
    },
};

use super::{
    ConnectionId, Node, Now,
    access::{Denied, Identity},
    ask::Purpose,
    audit::Seen,
    question::Question,
    quota::Sessions,
};
use crate::shard::{Answer, delivery::SubscriberId, event::Event, state::Outcome};

/// To whoever failed too often.
const THROTTLED: &str = "too many failed attempts came from this place: try later";

#[derive(Debug)]
enum Stage {
    Handshake(Box<ServerHandshake>),
    Ready,
    /// It was not let in.
    Refused,
}

/// Unanswered publishes.
#[derive(Debug, Default)]
pub(super) struct Publishing {
    pub(super) messages: u32,
    pub(super) bytes: u64,
}

/// One client.
#[derive(Debug)]
pub(super) struct Connection {
    stage: Stage,
    /// Where it comes from.
    pub(super) source: Source,
    /// Whose certificate it has shown, and proven to have the key of.
    certificate: Option<String>,
    /// Which access token its own follows from, by fingerprint.
    pub(super) access: Option<u32>,
    /// Who it has proven to be.
    pub(super) identity: Option<Identity>,
    pub(super) out: BytesMut,
    pub(super) closing: bool,
    pub(super) publishing: Publishing,
    /// Questions under way that need more than one step.
    pub(super) operations: usize,
    /// Looks at messages under way.
    pub(super) looks: usize,
    pub(super) subscriptions: BTreeMap<u32, SubscriberId>,
    /// Sessions opened here, where a quota counts them.
    pub(super) sessions: Sessions,
}

impl Connection {
    pub(super) fn is_ready(&self) -> bool {
        matches!(self.stage, Stage::Ready)
    }
}

impl Node {
    pub(super) fn connected(&mut self, now: Now, connection: ConnectionId, nonce: [u8; 32], source: Source) {
        let handshake =
            ServerHandshake::new(self.config.cluster, self.config.node, self.config.shard_count, nonce);
        self.counters.connections += 1;
        self.connections.insert(
            connection,
            Connection {
                stage: Stage::Handshake(Box::new(handshake)),
                source,
                certificate: None,
                access: None,
                identity: None,
                out: BytesMut::new(),
                closing: false,
                publishing: Publishing::default(),
                operations: 0,
                looks: 0,
                subscriptions: BTreeMap::new(),
                sessions: Sessions::new(),
            },
        );
        if !self.guard.listens_to(now.monotonic, source) {
            self.not_let_in(now, connection, "", &HandshakeError::NotNow(Code::Throttled, THROTTLED));
            let refused = Refused { code: Code::Throttled.number(), message: THROTTLED.to_owned() };
            self.send(connection, 0, &refused);
        }
    }

    /// The session around a connection has shown a client's certificate.
    pub(super) fn certified(&mut self, connection: ConnectionId, name: String) {
        if let Some(state) = self.connections.get_mut(&connection) {
            state.certificate = Some(name);
        }
    }

    /// Whoever is there will not be let in; that was said, or is said next.
    fn not_let_in(&mut self, now: Now, connection: ConnectionId, claimed: &str, error: &HandshakeError) {
        self.counters.refused_connections += 1;
        let Some(state) = self.connections.get_mut(&connection) else { return };
        (state.stage, state.closing) = (Stage::Refused, true);
        self.talking.insert(connection);
        let source = Some(state.source);
        let (verb, address) = ("connect", "*".to_owned());
        let principal = claimed.to_owned();
        self.audit.note(now, Seen { source, principal, verb, address, code: Some(error.code()) });
    }

    /// A frame of somebody who has not proven anything.
    fn shake_hands(&mut self, now: Now, connection: ConnectionId, header: FrameHeader, body: Bytes) {
        let Some(state) = self.connections.get_mut(&connection) else { return };
        let source = state.source;
        let certificate = state.certificate.clone();
        let Stage::Handshake(mut handshake) = std::mem::replace(&mut state.stage, Stage::Refused) else {
            return;
        };
        let mut out = BytesMut::new();
        // Whoever connected before nobody listened to its place any more is not listened to either.
        let result = if header.kind == FrameKind::ClientProof && !self.guard.listens_to(now.monotonic, source)
        {
            let refused = Refused { code: Code::Throttled.number(), message: THROTTLED.to_owned() };
            frame::encode(&refused, 0, &mut out);
            Err(HandshakeError::NotNow(Code::Throttled, THROTTLED))
        } else {
            let (auth, certificate) = (handshake.auth(), certificate.as_deref());
            let find = |name: &str| self.candidates(now, name, auth, certificate);
            handshake.frame(now.wall, header, body, &find, &mut out)
        };
        let state = self.connections.get_mut(&connection).expect("looked up above");
        state.out.extend_from_slice(&out);
        self.talking.insert(connection);
        match result {
            Ok(None) => state.stage = Stage::Handshake(handshake),
            Ok(Some(proven)) => {
                state.stage = Stage::Ready;
                self.guard.succeeded(source);
                let (identity, access) = self.identity(&proven, handshake.auth());
                if let Some(name) = identity.name() {
                    self.guest_came(connection, &name.clone());
                }
                let state = self.connections.get_mut(&connection).expect("looked up above");
                (state.identity, state.access) = (Some(identity), access);
                if self.draining {
                    self.go_away(connection, "the node is stopping");
                }
            }
            Err(error) => {
                let guessed = error == HandshakeError::WrongToken || error.code() == Code::NotLeader;
                if guessed {
                    self.guard.failed(now.monotonic, source);
                }
                self.not_let_in(now, connection, handshake.claimed(), &error);
            }
        }
    }

    pub(super) fn disconnected(&mut self, now: Now, connection: ConnectionId) {
        let Some(gone) = self.connections.remove(&connection) else { return };
        if let Some(name) = gone.identity.as_ref().and_then(Identity::name) {
            self.guest_left(connection, name, gone.publishing.bytes, &gone.sessions);
        }
        gone.subscriptions.into_values().for_each(|id| self.unsubscribe(now, id));
        self.leaders_unwatched(connection);
        self.forsake(connection);
        self.forsake_surveys(connection);
    }

    /// Tells the peer what was wrong and closes.
    pub(super) fn malformed(&mut self, connection: ConnectionId, error: &FrameError) {
        self.counters.malformed += 1;
        let refused = Refused { code: error.code().number(), message: error.to_string() };
        self.send(connection, 0, &refused);
        self.close(connection);
    }

    pub(super) fn close(&mut self, connection: ConnectionId) {
        if let Some(state) = self.connections.get_mut(&connection) {
            state.closing = true;
            self.talking.insert(connection);
        }
    }

    pub(super) fn send<B: Body>(&mut self, connection: ConnectionId, request: u64, body: &B) {
        let Some(state) = self.connections.get_mut(&connection) else { return };
        frame::encode(body, request, &mut state.out);
        self.talking.insert(connection);
    }

    pub(super) fn fail(&mut self, connection: ConnectionId, request: u64, code: Code, what: &str) {
        let reply = Reply { outcome: Fate::Failed, code: code.number(), message: what.to_owned() };
        self.send(connection, request, &reply);
    }

    pub(super) fn go_away(&mut self, connection: ConnectionId, reason: &str) {
        self.send(connection, 0, &GoAway { reason: reason.to_owned() });
    }

    pub(super) fn plain(&mut self, connection: ConnectionId, request: u64, answer: &Answer) {
        let (outcome, code) = match answer {
            Answer::Committed(Outcome::Refused(code)) | Answer::Refused(code) => (Fate::Failed, Some(*code)),
            Answer::Unknown(code) => (Fate::Unknown, Some(*code)),
            _ => (Fate::Ok, None),
        };
        let message = code.map_or_else(String::new, |code| code.text().to_owned());
        self.send(connection, request, &Reply { outcome, code: code.map_or(0, Code::number), message });
    }

    /// One frame of one client, to whoever answers it.
    pub(super) fn frame(&mut self, now: Now, connection: ConnectionId, header: FrameHeader, body: Bytes) {
        let Some(state) = self.connections.get_mut(&connection) else { return };
        if state.closing {
            return;
        }
        if !state.is_ready() {
            return self.shake_hands(now, connection, header, body);
        }
        // The hot path skips the big enum: a publish is most of what comes.
        if header.kind == FrameKind::Publish {
            match frame::decode::<Publish>(body) {
                Ok(publish) => {
                    let (messages, bytes) = (publish.count.into(), publish.messages.len() as u64);
                    self.charge(now, connection, messages, bytes);
                    self.publish(now, connection, header.request, &publish);
                }
                Err(error) => self.malformed(connection, &FrameError::Body(header.kind, error)),
            }
            return;
        }
        if !is_for_node(header.kind) {
            // Not even looked into: its list could grow far beyond its bytes.
            self.stray(connection, header.request);
            return;
        }
        if !matches!(header.kind, FrameKind::Ping | FrameKind::Pong | FrameKind::Credit) {
            self.charge(now, connection, 1, 0);
        }
        match Frame::decode(header.kind, body) {
            Ok(frame) => self.dispatch(now, connection, header.request, frame),
            Err(error) => self.malformed(connection, &FrameError::Body(header.kind, error)),
        }
    }

    fn dispatch(&mut self, now: Now, connection: ConnectionId, request: u64, frame: Frame) {
        if let Err(denied) = self.judge_frame(connection, &frame) {
            return self.deny(now, connection, request, &frame, &denied);
        }
        match frame {
            Frame::Resolve(resolve) => self.resolve(now, connection, request, resolve),
            Frame::Publish(publish) => self.publish(now, connection, request, &publish),
            Frame::OpenSession(open) if !self.opens(connection, open.producer, open.shard) => {
                let (verb, address) = ("publish", "*".to_owned());
                let why = "as many producers of this principal have sessions as may";
                let denied = Denied { verb, address, code: Code::Quota, why };
                self.deny(now, connection, request, &Frame::OpenSession(open), &denied);
            }
            Frame::OpenSession(open) => {
                let event = Event::Opened {
                    producer: open.producer,
                    epoch: open.epoch,
                    salt: open.salt,
                    created_at: open.created_at,
                };
                self.propose_plain(now, connection, request, open.shard, &event);
            }
            Frame::Skip(skip) if skip.last.0 > SEQUENCE_MAX => {
                self.fail(connection, request, Code::Malformed, "no session has so many messages");
            }
            Frame::Skip(skip) => {
                let event = Event::Skipped {
                    producer: skip.producer,
                    epoch: skip.epoch,
                    first: skip.first,
                    last: skip.last,
                };
                self.propose_plain(now, connection, request, skip.shard, &event);
            }
            Frame::CloseSession(close) => {
                self.closes(connection, close.producer, close.shard);
                let event = Event::Closed { producer: close.producer, epoch: close.epoch };
                self.propose_plain(now, connection, request, close.shard, &event);
            }
            Frame::Subscribe(subscribe) => self.subscribe(now, connection, request, subscribe),
            Frame::Unsubscribe(frame) => {
                let state = self.connections.get_mut(&connection).expect("it sent this frame");
                if let Some(id) = state.subscriptions.remove(&frame.subscription) {
                    self.unsubscribe(now, id);
                }
                self.send(connection, request, &Reply::ok());
            }
            Frame::Credit(credit) => self.credit(now, connection, &credit),
            Frame::Settle(settle) => self.settle(now, connection, request, &settle),
            Frame::Peek(peek) => self.peek(now, connection, request, peek),
            Frame::Admin(admin) => self.admin(now, connection, request, admin.0),
            Frame::WatchLeaders(_) => self.watch_leaders(connection, request),
            Frame::Ping(_) => self.send(connection, request, &Pong),
            Frame::Pong(_) => {}
            _ => self.stray(connection, request),
        }
    }

    /// A frame that a node never takes, or not at this stage: whoever sent it speaks another protocol.
    fn stray(&mut self, connection: ConnectionId, request: u64) {
        let message = "this frame is not for a node, or not now".to_owned();
        self.send(connection, request, &Refused { code: Code::State.number(), message });
        self.close(connection);
    }

    fn propose_plain(
        &mut self,
        now: Now,
        connection: ConnectionId,
        request: u64,
        shard: ShardId,
        event: &Event,
    ) {
        // Draining refuses new sessions, but a sequence that is given up may still be closed.
        let refused = self
            .refuses_writes()
            .filter(|code| *code != Code::Draining || matches!(event, Event::Opened { .. }));
        if let Some(code) = refused {
            self.fail(connection, request, code, "this node takes no changes now");
            return;
        }
        let index = self.index_of(shard).filter(|index| *index + 1 < self.shards.len());
        let Some(index) = index else {
            self.fail(connection, request, Code::WrongShard, "no such shard");
            return;
        };
        self.ask(now, index, Question::Propose(event.clone()), Purpose::Plain { connection, request });
    }
}

/// Whether an authenticated client may send frames of this kind.
pub(super) fn is_for_node(kind: FrameKind) -> bool {
    matches!(
        kind,
        FrameKind::Resolve
            | FrameKind::Publish
            | FrameKind::OpenSession
            | FrameKind::Skip
            | FrameKind::CloseSession
            | FrameKind::Subscribe
            | FrameKind::Unsubscribe
            | FrameKind::Credit
            | FrameKind::Settle
            | FrameKind::Peek
            | FrameKind::Admin
            | FrameKind::Ping
            | FrameKind::Pong
            | FrameKind::WatchLeaders
    )
}
