//! The UDP socket: datagrams of other nodes in, this node's out. What they say and whether they are genuine is for the engine;
//! nobody is ever answered from here.

use std::{collections::BTreeMap, io, net::SocketAddr};

use bytes::Bytes;
use mio::{Interest, Registry, Token, net::UdpSocket};
use swarmmq_engine::node::Neighbour;
use swarmmq_protocol::{id::NodeId, limits::DATAGRAM_BYTES_MAX};

use crate::{
    StartError,
    clock::{SUCCESSION_TIME_MAX, patiently},
    http::{is_in_use, port_error},
};

/// Datagrams taken before the node decides; who sends more waits in the kernel, and loses what does not fit there.
const BURST: usize = 512;

/// Where datagrams come and go.
#[derive(Debug)]
pub(crate) struct Gossip {
    socket: UdpSocket,
    addresses: BTreeMap<NodeId, SocketAddr>,
    /// There may be more to read, without another event.
    unread: bool,
    /// Datagrams that the kernel did not take, or whose addressee is not known. Others come: nothing is repeated.
    lost: u64,
}

impl Gossip {
    /// Takes datagrams on the port `listen.gossip` from now on.
    pub(crate) fn bind(address: SocketAddr, registry: &Registry, token: Token) -> Result<Self, StartError> {
        let failed = |error: io::Error| port_error("gossip", address, &error);
        let mut socket =
            patiently(SUCCESSION_TIME_MAX, is_in_use, || UdpSocket::bind(address)).map_err(failed)?;
        registry.register(&mut socket, token, Interest::READABLE).map_err(failed)?;
        Ok(Self { socket, addresses: BTreeMap::new(), unread: false, lost: 0 })
    }

    /// Where the members take datagrams. Whoever gives no numeric address hears nothing.
    pub(crate) fn set_members(&mut self, members: &[Neighbour]) {
        let address = |member: &Neighbour| Some((member.node, member.gossip.parse().ok()?));
        self.addresses = members.iter().filter_map(address).collect();
    }

    /// Something can be read.
    pub(crate) fn wake(&mut self) {
        self.unread = true;
    }

    /// Whether [`Gossip::receive`] should be called without waiting.
    pub(crate) fn has_more(&self) -> bool {
        self.unread
    }

    /// Hands over what has come. What is longer than any datagram of ours is cut, and will not be genuine.
    pub(crate) fn receive(&mut self, mut hand: impl FnMut(Bytes)) {
        let mut buffer = [0; DATAGRAM_BYTES_MAX + 1];
        for _ in 0..BURST {
            if !self.unread {
                return;
            }
            match self.socket.recv_from(&mut buffer) {
                Ok((count, _)) => hand(Bytes::copy_from_slice(&buffer[..count])),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.unread = false,
                // An earlier datagram of ours reached nobody; the next read tells what has come.
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::Interrupted | io::ErrorKind::ConnectionRefused
                    ) => {}
                Err(error) => {
                    tracing::warn!(%error, "datagrams cannot be read");
                    self.unread = false;
                }
            }
        }
    }

    /// Sends a datagram, or loses it.
    pub(crate) fn send(&mut self, node: NodeId, bytes: &[u8]) {
        let sent = self.addresses.get(&node).map(|address| self.socket.send_to(bytes, *address));
        self.lost += u64::from(!matches!(sent, Some(Ok(_))));
    }

    /// Datagrams that were to be sent and were not, since the start.
    pub(crate) fn lost(&self) -> u64 {
        self.lost
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use mio::{Events, Poll};

    use super::*;

    fn bound(poll: &Poll, token: usize) -> (Gossip, SocketAddr) {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let gossip = Gossip::bind(any, poll.registry(), Token(token)).unwrap();
        let address = gossip.socket.local_addr().unwrap();
        (gossip, address)
    }

    #[test]
    fn datagrams_reach_members_whole_and_strangers_not_at_all() {
        let mut poll = Poll::new().unwrap();
        let ((mut one, _), (mut two, address)) = (bound(&poll, 1), bound(&poll, 2));
        one.send(NodeId(2), b"early");
        assert_eq!(one.lost(), 1, "nobody said where node 2 is");
        let member = |gossip: String| Neighbour { node: NodeId(2), peer: String::new(), gossip };
        one.set_members(&[member(address.to_string())]);
        let long = [7; DATAGRAM_BYTES_MAX + 100];
        one.send(NodeId(2), b"hello");
        one.send(NodeId(2), &long);
        let (mut events, mut heard) = (Events::with_capacity(8), Vec::new());
        let until = Instant::now() + Duration::from_secs(10);
        while heard.len() < 2 && Instant::now() < until {
            poll.poll(&mut events, Some(Duration::from_millis(100))).unwrap();
            two.wake();
            two.receive(|bytes| heard.push(bytes));
        }
        let lengths: Vec<usize> = heard.iter().map(Bytes::len).collect();
        assert_eq!((&heard[0][..], lengths), (&b"hello"[..], vec![5, DATAGRAM_BYTES_MAX + 1]));
        assert!(!two.has_more());
        one.set_members(&[member("not an address".into())]);
        one.send(NodeId(2), b"late");
        assert_eq!(one.lost(), 2);
    }
}
