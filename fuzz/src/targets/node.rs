//! Any sequence of frames in any state: an input is a little program of what happens to a node.

use std::{sync::OnceLock, time::Duration};

use bytes::Bytes;
use swarmmq_engine::node::{ConnectionId, Input};
use swarmmq_protocol::{
    frame::{Frame, Ping},
    id::{ClusterId, NodeId},
    packet::{Class, Packet},
    session::peer::PeerHello,
};

use super::{Mark, magnitude, recorded};
use crate::world::{SHARDS, Sender, World};

const FRAMES: &str = include_str!("../../../crates/protocol/testdata/frames_v1.txt");
const ADMIN: &str = include_str!("../../../crates/protocol/testdata/admin_v1.txt");
/// Steps of one history.
const STEPS_MAX: usize = 48;

/// Recorded frames, about addresses and shards that exist here.
fn frames() -> &'static [Vec<u8>] {
    static FRAMES_READ: OnceLock<Vec<Vec<u8>>> = OnceLock::new();
    FRAMES_READ.get_or_init(|| [recorded(FRAMES), recorded(ADMIN)].concat())
}

/// Where the steps of a history come from: its bytes, and zeros when they are used up.
struct Steps<'a>(&'a [u8]);

impl Steps<'_> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    fn bytes(&mut self, count: usize) -> &[u8] {
        let (taken, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// A recorded frame, with up to three of its bytes changed.
    fn frame(&mut self) -> Vec<u8> {
        let all = frames();
        let mut frame = all[usize::from(self.byte()) % all.len()].clone();
        for _ in 0..self.byte() % 4 {
            // Not the length: a stream that breaks its framing is another step.
            let at = 4 + usize::from(self.byte()) % (frame.len() - 4);
            frame[at] = self.byte();
        }
        frame
    }
}

pub(super) fn histories() -> Vec<Vec<u8>> {
    let count = frames().len() as u8;
    let mut seeds: Vec<Vec<u8>> = (0..count).map(|frame| vec![0, 0, frame, 0, 10, 4]).collect();
    // Every frame after each other, on one connection and on a stranger's.
    seeds.push((0..count.min(STEPS_MAX as u8)).flat_map(|frame| [0, 0, frame, 0]).collect());
    seeds.push((0..count.min(STEPS_MAX as u8)).flat_map(|frame| [0, 2, frame, 0]).collect());
    seeds.push(vec![6, 20, 6, 30, 7, 6, 10, 8, 6, 20, 9, 6, 10, 10, 12]);
    seeds.push(vec![11, 13, 0, 4, 1, 2, 3, 4, 14, 8, 1, 2, 3, 4, 5, 6, 7, 8, 12]);
    seeds
}

/// A history of hostile clients and peers, with an honest client beside them: the node goes on, and answers it.
pub(super) fn history(input: &[u8]) -> u64 {
    let mut mark = Mark::new();
    let mut steps = Steps(input);
    let mut world = World::new();
    let mut honest = world.client();
    let mut clients: [ConnectionId; 3] = [world.client(), world.client(), world.stranger()];
    let mut senders: Vec<Sender> = Vec::new();
    for _ in 0..STEPS_MAX {
        if steps.0.is_empty() {
            break;
        }
        let step = steps.byte() % 15;
        mark.note(step);
        match step {
            0..4 => {
                let client = clients[usize::from(steps.byte()) % 3];
                let frame = steps.frame();
                world.bytes(client, &frame);
                for (_, answer) in world.take(client) {
                    if let Frame::Answer(answer) = &answer {
                        mark.note(answer.code);
                    }
                    mark.note(std::mem::discriminant(&answer));
                }
            }
            4 => {
                let client = clients[usize::from(steps.byte()) % 3];
                let count = steps.byte().into();
                let bytes = steps.bytes(count).to_vec();
                world.bytes(client, &bytes);
                world.take(client);
            }
            5 => {
                let which = usize::from(steps.byte()) % 3;
                world.disconnect(clients[which]);
                clients[which] = if which == 2 { world.stranger() } else { world.client() };
            }
            6 => {
                if senders.is_empty() {
                    senders.push(Sender::new(40));
                    let open = senders[0].open();
                    world.send(honest, &open);
                }
                let frame = senders[0].publish(steps.byte().into());
                world.send(honest, &frame);
                world.take(honest);
            }
            7 => world.hold_syncs = !world.hold_syncs,
            8 => {
                world.sync();
                world.run();
            }
            9 => {
                world = world.crash();
                senders.clear();
                honest = world.client();
                clients = [world.client(), world.client(), world.stranger()];
            }
            10 => world.pass(Duration::from_millis(1 << (steps.byte() % 16))),
            11 => world.input(Input::PeerUp { hello: hello(steps.byte()) }),
            12 => world.input(Input::PeerDown { node: NodeId(2), gone: steps.byte() & 1 != 0 }),
            13 => {
                let class = Class::ALL[usize::from(steps.byte()) % Class::ALL.len()];
                let count = steps.byte().into();
                let body = Bytes::copy_from_slice(steps.bytes(count));
                let packet = Packet::direct(class, NodeId(2), NodeId(1), body);
                world.input(Input::Packet { from: NodeId(2), packet });
            }
            _ => {
                let count = steps.byte().into();
                let bytes = Bytes::copy_from_slice(steps.bytes(count));
                world.input(Input::Datagram { bytes });
            }
        }
    }
    world.hold_syncs = false;
    world.sync();
    world.run();
    world.take(honest);
    world.send(honest, &Frame::Ping(Ping));
    let pong = world.take(honest).iter().any(|(_, frame)| matches!(frame, Frame::Pong(_)));
    assert!(pong, "the honest client is not answered any more: {}", world.node.report().reason);
    let depth = world.disk.len();
    mark.note((magnitude(depth), world.node.report().ready));
    // What it wrote can be read back.
    let world = world.crash();
    assert!(world.node.shards().len() == SHARDS as usize + 1, "all shards are back");
    mark.done()
}

fn hello(byte: u8) -> PeerHello {
    PeerHello {
        cluster: Some(ClusterId(5)),
        shard_count: SHARDS,
        node: NodeId(2),
        incarnation: 1 + u64::from(byte >> 4),
        boot: 1 + u64::from(byte & 15),
        roles: 7,
        client: String::new(),
        peer: "10.0.0.2:7421".into(),
        admin: String::new(),
        gossip: "10.0.0.2:7422".into(),
        version: "fuzzed".into(),
        key: PeerHello::NO_KEY,
        join: None,
    }
}
