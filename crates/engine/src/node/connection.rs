//! Who may talk, and who answers which frame.

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};
use swarmmq_protocol::{
    error::{Code, Outcome as Fate},
    frame::{self, Answer as Reply, Body, Frame, FrameError, FrameHeader, FrameKind, GoAway, Pong, Refused},
    id::ShardId,
    limits::SEQUENCE_MAX,
    session::handshake::ServerHandshake,
};

use super::{ConnectionId, Node, Now, ask::Purpose, question::Question};
use crate::shard::{Answer, delivery::SubscriberId, event::Event, state::Outcome};

#[derive(Debug)]
enum Stage {
    Handshake(Box<ServerHandshake>),
    Ready,
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
    pub(super) out: BytesMut,
    pub(super) closing: bool,
    pub(super) publishing: Publishing,
    /// Questions under way that need more than one step.
    pub(super) operations: usize,
    /// Looks at messages under way.
    pub(super) looks: usize,
    pub(super) subscriptions: BTreeMap<u32, SubscriberId>,
}

impl Connection {
    pub(super) fn is_ready(&self) -> bool {
        matches!(self.stage, Stage::Ready)
    }
}

impl Node {
    pub(super) fn connected(&mut self, _now: Now, connection: ConnectionId, nonce: [u8; 32]) {
        let handshake = ServerHandshake::new(
            self.config.access_token.clone(),
            self.config.cluster,
            self.config.node,
            self.config.shard_count,
            nonce,
        );
        self.counters.connections += 1;
        self.connections.insert(
            connection,
            Connection {
                stage: Stage::Handshake(Box::new(handshake)),
                out: BytesMut::new(),
                closing: false,
                publishing: Publishing::default(),
                operations: 0,
                looks: 0,
                subscriptions: BTreeMap::new(),
            },
        );
    }

    pub(super) fn disconnected(&mut self, now: Now, connection: ConnectionId) {
        let Some(gone) = self.connections.remove(&connection) else { return };
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

    fn close(&mut self, connection: ConnectionId) {
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
        if let Stage::Handshake(handshake) = &mut state.stage {
            self.talking.insert(connection);
            match handshake.frame(now.wall, header, body, &mut state.out) {
                Ok(None) => {}
                Ok(Some(_principal)) => {
                    state.stage = Stage::Ready;
                    if self.draining {
                        self.go_away(connection, "the node is stopping");
                    }
                }
                Err(_) => {
                    self.counters.refused_connections += 1;
                    state.closing = true;
                }
            }
            return;
        }
        // The hot path skips the big enum: a publish is most of what comes.
        if header.kind == FrameKind::Publish {
            match frame::decode(body) {
                Ok(publish) => self.publish(now, connection, header.request, &publish),
                Err(error) => self.malformed(connection, &FrameError::Body(header.kind, error)),
            }
            return;
        }
        if !is_for_node(header.kind) {
            // Not even looked into: its list could grow far beyond its bytes.
            self.stray(connection, header.request);
            return;
        }
        match Frame::decode(header.kind, body) {
            Ok(frame) => self.dispatch(now, connection, header.request, frame),
            Err(error) => self.malformed(connection, &FrameError::Body(header.kind, error)),
        }
    }

    fn dispatch(&mut self, now: Now, connection: ConnectionId, request: u64, frame: Frame) {
        match frame {
            Frame::Resolve(resolve) => self.resolve(now, connection, request, resolve),
            Frame::Publish(publish) => self.publish(now, connection, request, &publish),
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
