//! From one input to another: small damage, boundary values where numbers may lie, pieces of other inputs.

use crate::rng::Rng;

/// What decoders get wrong: the ends of ranges, and numbers that overflow when something is added or multiplied.
const BOUNDARIES: [u64; 16] = [
    0,
    1,
    2,
    0x7f,
    0x80,
    0xff,
    0x100,
    0x7fff,
    0xffff,
    0x1_0000,
    0x7fff_ffff,
    0xffff_ffff,
    0x1_0000_0000,
    0x7fff_ffff_ffff_ffff,
    0xffff_ffff_ffff_fff0,
    u64::MAX,
];

/// Changes `bytes` in one to four places.
///
/// * `other`: where pieces are taken from.
/// * `bytes_max`: it does not become longer than that.
pub fn mutate(bytes: &mut Vec<u8>, other: &[u8], bytes_max: usize, rng: &mut Rng) {
    for _ in 0..=rng.below(4) {
        once(bytes, other, rng);
    }
    bytes.truncate(bytes_max);
}

fn once(bytes: &mut Vec<u8>, other: &[u8], rng: &mut Rng) {
    let length = bytes.len();
    if length == 0 {
        bytes.push(rng.next() as u8);
        return;
    }
    let at = rng.below(length);
    match rng.below(10) {
        0 => bytes[at] ^= 1 << rng.below(8),
        1 => bytes[at] = rng.next() as u8,
        2 => bytes[at] = bytes[at].wrapping_add(1 + rng.below(8) as u8).wrapping_sub(4),
        3 | 4 => boundary(bytes, at, rng),
        5 => bytes.truncate(at),
        6 => {
            let to = at + 1 + rng.below((length - at).min(32));
            bytes.drain(at..to.min(length));
        }
        7 => {
            let to = (at + 1 + rng.below(32)).min(length);
            let piece = bytes[at..to].to_vec();
            let place = rng.below(length + 1);
            bytes.splice(place..place, piece);
        }
        8 if !other.is_empty() => {
            // The head of one, the tail of another.
            bytes.truncate(at);
            bytes.extend_from_slice(&other[rng.below(other.len())..]);
        }
        9 if !other.is_empty() => {
            let from = rng.below(other.len());
            let piece = &other[from..(from + 1 + rng.below(32)).min(other.len())];
            let to = (at + piece.len()).min(length);
            bytes.splice(at..to, piece.iter().copied());
        }
        _ => bytes.insert(at, rng.next() as u8),
    }
}

/// A number of one, two, four or eight bytes, big-endian as everything of ours, at its boundary or next to what it was.
fn boundary(bytes: &mut [u8], at: usize, rng: &mut Rng) {
    let width = [1, 2, 4, 8][rng.below(4)].min(bytes.len() - at);
    let mut real = [0; 8];
    real[8 - width..].copy_from_slice(&bytes[at..at + width]);
    let value = match rng.below(3) {
        0 => u64::from_be_bytes(real).wrapping_add(1 + rng.below(3) as u64).wrapping_sub(2),
        _ => BOUNDARIES[rng.below(BOUNDARIES.len())],
    };
    bytes[at..at + width].copy_from_slice(&value.to_be_bytes()[8 - width..]);
}
