//! Connections of clients: ordered streams of bytes with random delays, and what happens to them when one breaks.

use bytes::BytesMut;
use swarmmq_protocol::{frame::FrameReader, id::NodeId};

use super::{Event, Swarm, host::Arrival};
use crate::{
    client::Line,
    clock::{MILLISECOND, SECOND, instant},
};

/// After that a client gives a connection up that is not proven yet.
const HANDSHAKE_TIME_MAX: u64 = 2 * SECOND;
/// The same where there is still a connection, though a silent one.
const SECOND_HANDSHAKE_TIME_MAX: u64 = SECOND / 2;
/// Direct connections that cannot be made though the node runs.
const UNREACHABLE_PER_MILLE: u64 = 100;

/// One connection between a client and one life of the node.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) client: usize,
    pub(super) life: u64,
    pub(super) host: usize,
    pub(super) boot: u64,
    /// Frames as the node reads them.
    pub(super) reader: FrameReader,
    /// The node reads nothing more of it.
    pub(super) broken_at_node: bool,
    to_node_at: u64,
    to_client_at: u64,
    to_node_slow: Slowness,
    to_client_slow: Slowness,
    /// Bytes do not arrive any more.
    to_node_lost: bool,
    to_client_lost: bool,
    /// The node was told that it is gone.
    node_knows: bool,
}

/// Until when bytes of one direction take how much longer.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Slowness {
    pub(super) until: u64,
    pub(super) by: u64,
}

impl Slowness {
    /// How much longer what is sent at `at` takes.
    pub(super) fn at(self, at: u64) -> u64 {
        if at < self.until { self.by } else { 0 }
    }
}

impl Swarm {
    /// Whether something is on its way to a client, and has yet to come.
    pub(super) fn awaits_bytes(&self, client: usize) -> bool {
        self.connections.values().any(|state| state.client == client && state.to_client_at > self.at)
    }

    pub(super) fn latency(&mut self) -> u64 {
        if self.scheduling.chance(900) {
            self.scheduling.between(MILLISECOND / 20, MILLISECOND)
        } else {
            self.scheduling.between(MILLISECOND, 5 * MILLISECOND)
        }
    }

    /// A client tries to connect; if that node is down it tries another one after a pause.
    pub(super) fn dial(&mut self, client: usize, life: u64) {
        if self.clients[client].life != life || self.clients[client].is_dialling() {
            return;
        }
        let host = self.door(client);
        if !self.hosts[host].is_up() {
            self.clients[client].home = None;
            self.redial(client);
            return;
        }
        self.connect(client, Line::Home, host);
    }

    /// A client whose home is silent tries another node.
    pub(super) fn dial_elsewhere(&mut self, client: usize, life: u64) {
        if self.clients[client].life != life || !self.clients[client].is_seeking() {
            return;
        }
        let home = self.clients[client].home;
        let mut doors = self.doors();
        doors.retain(|host| Some(*host) != home);
        if doors.is_empty() {
            return;
        }
        let host = doors[self.scheduling.below(doors.len() as u64) as usize];
        if self.hosts[host].is_up() {
            self.connect(client, Line::Next, host);
        }
    }

    /// A client tries to connect to a node that leads; some networks let nobody through.
    pub(super) fn dial_direct(&mut self, client: usize, life: u64, node: NodeId) {
        if self.clients[client].life != life {
            return;
        }
        let host = usize::from(node.0) - 1;
        if self.hosts[host].is_up() && !self.scheduling.chance(UNREACHABLE_PER_MILLE) {
            self.connect(client, Line::Direct(node), host);
        } else {
            self.clients[client].unreachable(instant(self.at), node);
            self.pump(client);
        }
    }

    fn connect(&mut self, client: usize, line: Line, host: usize) {
        let life = self.clients[client].life;
        let number = self.next_connection;
        self.next_connection += 1;
        self.connections.insert(
            number,
            Connection {
                client,
                life,
                host,
                boot: self.hosts[host].boot,
                reader: FrameReader::new(),
                broken_at_node: false,
                to_node_at: self.at,
                to_client_at: self.at,
                to_node_slow: Slowness::default(),
                to_client_slow: Slowness::default(),
                to_node_lost: false,
                to_client_lost: false,
                node_knows: false,
            },
        );
        self.note("connected", client as u64, number, host as u64);
        let nonce = self.entropy.bytes();
        self.arrive(host, Arrival::Connected { connection: number, nonce });
        let nonce = self.entropy.bytes();
        let token = self.keyring.access_token();
        // Where it matters who is where, nobody goes elsewhere.
        self.clients[client].has_others = self.mask.is_none() && self.doors().len() > 1;
        self.clients[client].dialled(line, number, token, nonce);
        self.pump(client);
        let time = if line == Line::Next { SECOND_HANDSHAKE_TIME_MAX } else { HANDSHAKE_TIME_MAX };
        self.after(time, Event::Impatient { connection: number });
    }

    /// Where a client connects: where it was, or to any node that takes clients.
    fn door(&mut self, client: usize) -> usize {
        if let Some(home) = self.clients[client].home {
            return home;
        }
        let doors = self.doors();
        let home = doors[self.scheduling.below(doors.len() as u64) as usize];
        self.clients[client].home = Some(home);
        home
    }

    /// Hosts that take clients.
    fn doors(&self) -> Vec<usize> {
        (0..self.hosts.len()).filter(|host| self.hosts[*host].is_ingress()).collect()
    }

    /// The node behind a connection has not answered for long: it is stopped. The client goes elsewhere.
    pub(super) fn impatient(&mut self, connection: u64) {
        let Some(state) = self.connections.get(&connection) else { return };
        let client = state.client;
        if self.clients[client].waits_for(connection) {
            self.client_leaves(connection);
            self.client_hears(connection);
        }
    }

    pub(super) fn redial(&mut self, client: usize) {
        let life = self.clients[client].life;
        let pause = self.scheduling.between(50 * MILLISECOND, 500 * MILLISECOND);
        self.after(pause, Event::Dial { client, life });
    }

    pub(super) fn send_to_node(&mut self, connection: u64, bytes: BytesMut) {
        let latency = self.latency();
        let at = self.at + latency;
        let Some(state) = self.connections.get_mut(&connection) else { return };
        state.to_node_at = state.to_node_at.max(at + state.to_node_slow.at(self.at));
        let at = state.to_node_at;
        self.push(at, Event::ToNode { connection, bytes });
    }

    /// `times` are when whoever leads the shard sent what is sent now, and when the client's node decided to.
    pub(super) fn send_to_client(&mut self, connection: u64, bytes: BytesMut, times: (u64, u64)) {
        self.trace.bytes(self.at, "node sends", connection, &bytes);
        let latency = self.latency();
        let at = self.at + latency;
        let Some(state) = self.connections.get_mut(&connection) else { return };
        state.to_client_at = state.to_client_at.max(at + state.to_client_slow.at(self.at));
        let at = state.to_client_at;
        let (sent_at, handed_at) = times;
        self.push(at, Event::ToClient { connection, sent_at, handed_at, bytes });
    }

    pub(super) fn reach_node(&mut self, connection: u64, bytes: &[u8]) {
        let Some(state) = self.connections.get_mut(&connection) else { return };
        let host = state.host;
        if state.to_node_lost || state.boot != self.hosts[host].boot {
            return;
        }
        state.reader.buffer().extend_from_slice(bytes);
        self.trace.bytes(self.at, "node receives", connection, bytes);
        self.arrive(host, Arrival::Bytes { connection });
    }

    /// `times` are when whoever leads sent what comes, and when the client's node did.
    pub(super) fn reach_client(&mut self, connection: u64, times: (u64, u64), bytes: &[u8]) {
        let Some(state) = self.connections.get(&connection) else { return };
        let (client, life, host) = (state.client, state.life, state.host);
        if state.to_client_lost || self.clients[client].life != life {
            return;
        }
        let Some(line) = self.clients[client].line(connection) else { return };
        self.note("client receives", client as u64, connection, bytes.len() as u64);
        self.sent_at = times.0;
        self.handed = (host, times.1);
        let broken = self.clients[client].receive(instant(self.at), line, bytes).is_err();
        self.listen(client);
        if broken {
            self.client_leaves(connection);
            self.client_hears(connection);
        } else {
            self.pump(client);
        }
    }

    /// One direction becomes slow; nothing is lost, and neither end can know.
    pub(super) fn slow(&mut self, connection: u64) {
        let slowness = Slowness {
            until: self.at + self.chaos.between(SECOND, 6 * SECOND),
            by: self.chaos.between(SECOND / 10, 5 * SECOND),
        };
        let to_node = self.chaos.chance(500);
        let Some(state) = self.connections.get_mut(&connection) else { return };
        *(if to_node { &mut state.to_node_slow } else { &mut state.to_client_slow }) = slowness;
    }

    /// The wire is cut: bytes under way are lost, and each end learns of it in its own time.
    pub(super) fn cut(&mut self, connection: u64) {
        let Some(state) = self.connections.get_mut(&connection) else { return };
        state.to_node_lost = true;
        state.to_client_lost = true;
        let slow = self.chaos.chance(300);
        let node = self.chaos.below(if slow { 3000 } else { 5 }) * MILLISECOND;
        let client = self.chaos.below(if slow { 500 } else { 5 }) * MILLISECOND;
        self.after(node, Event::NodeHears { connection });
        self.after(client, Event::ClientHears { connection });
    }

    /// The node's process ends: what it sent may still arrive.
    pub(super) fn node_leaves(&mut self, connection: u64) {
        let lost = self.scheduling.chance(500);
        let Some(state) = self.connections.get_mut(&connection) else { return };
        state.to_node_lost = true;
        state.to_client_lost |= lost;
        let at = state.to_client_at.max(self.at);
        self.push(at, Event::ClientHears { connection });
    }

    /// The client's process ends or gives the connection up: what it sent may still arrive.
    pub(super) fn client_leaves(&mut self, connection: u64) {
        let Some(state) = self.connections.get_mut(&connection) else { return };
        state.to_client_lost = true;
        let at = state.to_node_at.max(self.at);
        self.push(at, Event::NodeHears { connection });
    }

    pub(super) fn node_hears(&mut self, connection: u64) {
        let Some(state) = self.connections.get_mut(&connection) else { return };
        state.to_node_lost = true;
        state.node_knows = true;
        let host = state.host;
        if state.boot == self.hosts[host].boot {
            self.note("node loses", connection, 0, 0);
            self.arrive(host, Arrival::Disconnected { connection });
        }
    }

    pub(super) fn client_hears(&mut self, connection: u64) {
        let Some(state) = self.connections.get_mut(&connection) else { return };
        state.to_client_lost = true;
        let (client, life) = (state.client, state.life);
        if self.clients[client].life != life {
            return;
        }
        let Some(line) = self.clients[client].line(connection) else { return };
        self.note("client loses", client as u64, connection, 0);
        self.clients[client].disconnected(instant(self.at), line);
        // Mostly to another node; perhaps to this one again.
        if line == Line::Home && self.scheduling.chance(700) {
            self.clients[client].home = None;
        }
        self.listen(client);
        self.pump(client);
        if line == Line::Home {
            self.redial(client);
        }
    }

    /// Forgets connections that both ends have been told are gone.
    pub(super) fn forget_connections(&mut self) {
        let (clients, hosts) = (&self.clients, &self.hosts);
        self.connections.retain(|number, state| {
            let used = clients[state.client].line(*number).is_some();
            let runs = hosts[state.host].boot == state.boot;
            used || runs && !state.node_knows
        });
    }

    /// Connections that carry bytes, in order.
    pub(super) fn live_connections(&self) -> Vec<u64> {
        let live = self.connections.iter().filter(|(_, state)| !state.to_node_lost && !state.to_client_lost);
        live.map(|(number, _)| *number).collect()
    }
}
