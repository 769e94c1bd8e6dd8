//! A link on which packets take longer: this kernel cannot delay packets, so a program does.
//!
//! Packets between the two machines travel inside others (VXLAN) to the bridge, where a socket of ours takes them, waits
//! and sends them on. Nothing else passes here, and addresses stay: connections that are open live on.

use std::{
    io::ErrorKind,
    net::UdpSocket,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, Sender, channel},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use super::net::{Network, address, carrier, hub_carrier};

/// The port of packets that carry others.
const PORT: u16 = 4789;
/// The interface through which the long way leads.
const DEVICE: &str = "long";
/// Bytes before the packet that is carried: VXLAN's header and an Ethernet header.
const HEAD_BYTES: usize = 8 + 14;
/// How often whoever waits for packets looks whether it should end.
const LOOK_PAUSE: Duration = Duration::from_millis(100);

/// A packet on its way: until when, what, and where to.
type Travelling = (Instant, Vec<u8>, String);

/// The long way between two machines, while this lives.
pub(super) struct LongWay {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Result<u64, String>>>,
}

impl LongWay {
    /// Leads packets between two machines over a way that takes `delay` longer in each direction.
    pub(super) fn make(network: &Network, pair: [u16; 2], delay: Duration) -> Result<Self, String> {
        let socket =
            UdpSocket::bind((hub_carrier().as_str(), PORT)).map_err(|error| format!("UDP: {error}"))?;
        socket.set_read_timeout(Some(LOOK_PAUSE)).map_err(|error| format!("UDP: {error}"))?;
        let sending = socket.try_clone().map_err(|error| format!("UDP: {error}"))?;
        let (carriers, stop) = (pair.map(carrier), Arc::new(AtomicBool::new(false)));
        let (hand, taken) = channel();
        let stopped = Arc::clone(&stop);
        let threads = vec![
            std::thread::spawn(move || take(&socket, &carriers, delay, &stopped, &hand)),
            std::thread::spawn(move || send(&sending, &taken)),
        ];
        let way = Self { stop, threads };
        for (here, there) in [(pair[0], pair[1]), (pair[1], pair[0])] {
            let (from, hub, port) = (carrier(here), hub_carrier(), PORT.to_string());
            // One packet at a time: several in one would not fit into a datagram.
            network.ip_on(
                here,
                &[
                    "link",
                    "add",
                    DEVICE,
                    "gso_max_segs",
                    "1",
                    "type",
                    "vxlan",
                    "id",
                    "7",
                    "local",
                    &from,
                    "remote",
                    &hub,
                    "dstport",
                    &port,
                    "nolearning",
                ],
            )?;
            network.ip_on(here, &["link", "set", DEVICE, "mtu", "1450", "up"])?;
            network.ip_on(
                here,
                &["route", "add", &format!("{}/32", address(there)), "dev", DEVICE, "src", &address(here)],
            )?;
        }
        Ok(way)
    }

    /// The direct way again. How many packets took the long one.
    pub(super) fn end(mut self, network: &Network, pair: [u16; 2]) -> Result<u64, String> {
        for machine in pair {
            network.ip_on(machine, &["link", "del", DEVICE])?;
        }
        self.stop.store(true, Ordering::Relaxed);
        let mut packets = 0;
        for thread in self.threads.drain(..) {
            packets += thread.join().map_err(|_| "the long way broke down".to_owned())??;
        }
        Ok(packets)
    }
}

impl Drop for LongWay {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn take(
    socket: &UdpSocket,
    carriers: &[String; 2],
    delay: Duration,
    stop: &AtomicBool,
    hand: &Sender<Travelling>,
) -> Result<u64, String> {
    let mut buffer = [0; 1 << 16];
    while !stop.load(Ordering::Relaxed) {
        let (length, from) = match socket.recv_from(&mut buffer) {
            Ok(received) => received,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => continue,
            Err(error) => return Err(format!("the long way: {error}")),
        };
        let from = from.ip().to_string();
        let Some(to) = carriers.iter().find(|carrier| **carrier != from) else { continue };
        let mut bytes = buffer[..length].to_vec();
        complete(bytes.get_mut(HEAD_BYTES..).unwrap_or_default());
        if hand.send((Instant::now() + delay, bytes, to.clone())).is_err() {
            break;
        }
    }
    // Whoever sends them counts.
    Ok(0)
}

/// All wait equally long, so they leave in the order in which they came. How many there were.
fn send(socket: &UdpSocket, taken: &Receiver<Travelling>) -> Result<u64, String> {
    let mut packets = 0;
    for (due, bytes, to) in taken {
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        match socket.send_to(&bytes, (to.as_str(), PORT)) {
            Ok(_) => packets += 1,
            // The receiver's interface may be gone already: packets get lost on wires, too.
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => {}
            Err(error) => return Err(format!("the long way: {error}")),
        }
    }
    Ok(packets)
}

/// Writes the checksum of TCP or UDP into an IPv4 packet: the kernel leaves that to the network card, which here is none.
fn complete(packet: &mut [u8]) {
    let (Some(&first), Some(&protocol)) = (packet.first(), packet.get(9)) else { return };
    let start = usize::from(first & 0x0f) * 4;
    let at = match protocol {
        6 => start + 16,
        17 => start + 6,
        _ => return,
    };
    let total = packet.get(2..4).map_or(0, |bytes| usize::from(u16::from_be_bytes([bytes[0], bytes[1]])));
    // Another version, or something cut short: whoever receives it refuses it.
    if first >> 4 != 4 || total > packet.len() || at + 2 > total {
        return;
    }
    packet[at..at + 2].fill(0);
    let length = (total - start) as u32;
    let mut sum = u32::from(protocol) + length;
    for pair in packet[12..20].chunks(2).chain(packet[start..total].chunks(2)) {
        sum += u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |byte| u32::from(*byte));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    // In UDP zero means that there is none.
    let checksum = if sum == 0xffff && protocol == 17 { 0xffff } else { !(sum as u16) };
    packet[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A datagram whose checksum was computed by another program.
    const DATAGRAM: [u8; 31] = [
        0x45, 0, 0, 31, 0, 1, 0x40, 0, 0x40, 17, 0, 0, 127, 77, 0, 1, 127, 77, 0, 2, 0x1b, 0x58, 0x1b, 0x59,
        0, 11, 0x06, 0x27, b'a', b'b', b'c',
    ];

    #[test]
    fn a_checksum_is_what_makes_the_sum_of_everything_all_ones() {
        let mut packet = DATAGRAM;
        packet[26..28].copy_from_slice(&[0xab, 0xcd]);
        complete(&mut packet);
        assert_eq!(packet, DATAGRAM, "whatever stood there before");
    }

    #[test]
    fn what_is_no_whole_packet_is_left_alone() {
        let mut arp = [0, 1, 8, 0, 6, 4, 0, 1, 1, 6, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12];
        let before = arp;
        complete(&mut arp);
        assert_eq!(arp, before);
        for length in 0..DATAGRAM.len() {
            let mut cut = DATAGRAM[..length].to_vec();
            complete(&mut cut);
            assert_eq!(cut, DATAGRAM[..length]);
        }
    }
}
