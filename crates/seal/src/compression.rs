//! Bodies that are made shorter before they are sealed, where their sender asks for it.
//!
//! ```text
//! | length of the body u32 | LZ4 block |
//! ```
//! A seal hides bytes and not their number, and how far a body shrinks says something about what is in it. Whoever can have text
//! of his own put next to a secret, and sees lengths, can guess that secret piece by piece (CRIME, 2012; BREACH, 2013). So it is off by
//! default, and every message is compressed by itself.

use bytes::Bytes;
use lz4_flex::block;
use swarmmq_protocol::codec::DecodeError;

/// Shorter bodies have nothing to repeat.
const BODY_BYTES_MIN: usize = 64;
const LENGTH_BYTES: usize = 4;

/// `body` made shorter. `None`: it would not be. Cost: one allocation of somewhat more than the body's length.
pub(crate) fn compress(body: &[u8]) -> Option<Vec<u8>> {
    if body.len() < BODY_BYTES_MIN {
        return None;
    }
    let mut stored = vec![0; LENGTH_BYTES + block::get_maximum_output_size(body.len())];
    let (length, out) = stored.split_at_mut(LENGTH_BYTES);
    length.copy_from_slice(&u32::try_from(body.len()).ok()?.to_be_bytes());
    let bytes = LENGTH_BYTES + block::compress_into(body, out).ok()?;
    stored.truncate(bytes);
    (bytes < body.len()).then_some(stored)
}

/// The body that `stored` was made of. What it says of its length is checked against `most` before there is room for it.
pub(crate) fn expand(stored: &[u8], most: usize) -> Result<Bytes, DecodeError> {
    let (length, block) = stored.split_first_chunk::<LENGTH_BYTES>().ok_or(DecodeError::Truncated)?;
    let bytes = u32::from_be_bytes(*length) as usize;
    if bytes > most {
        return Err(DecodeError::TooLarge("body"));
    }
    let mut body = vec![0; bytes];
    match block::decompress_into(block, &mut body) {
        Ok(found) if found == bytes => Ok(body.into()),
        _ => Err(DecodeError::Invalid("compressed body")),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MOST: usize = 1 << 20;

    #[test]
    fn text_comes_out_as_it_went_in_and_shorter_in_between() {
        let body = b"{\"customer\":17,\"item\":\"a book\",\"count\":1}\n".repeat(20);
        let stored = compress(&body).unwrap();
        assert!(stored.len() < body.len() / 5, "{} of {}", stored.len(), body.len());
        assert_eq!(expand(&stored, MOST).unwrap(), body);
    }

    #[test]
    fn what_would_not_be_shorter_stays_as_it_is() {
        assert_eq!(compress(b""), None);
        assert_eq!(compress(&[7; BODY_BYTES_MIN - 1]), None);
        let mut seed = 7_u64;
        let mut next = || {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed as u8
        };
        let noise: Vec<u8> = (0..1000).map(|_| next()).collect();
        assert_eq!(compress(&noise), None);
    }

    /// A bomb: a few bytes that claim to be a gigabyte, or are.
    #[test]
    fn a_length_above_the_bound_is_refused_before_there_is_room_for_it() {
        let mut stored = compress(&[7; 4096]).unwrap();
        assert_eq!(expand(&stored, 4095), Err(DecodeError::TooLarge("body")));
        assert_eq!(expand(&stored, 4096).unwrap(), [7; 4096][..]);
        stored[..4].copy_from_slice(&u32::MAX.to_be_bytes());
        assert_eq!(expand(&stored, MOST), Err(DecodeError::TooLarge("body")));
        for lie in [4095_u32, 4097, 0] {
            stored[..4].copy_from_slice(&lie.to_be_bytes());
            assert_eq!(expand(&stored, MOST), Err(DecodeError::Invalid("compressed body")), "{lie}");
        }
        assert_eq!(expand(&stored[..3], MOST), Err(DecodeError::Truncated));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn whatever_is_compressed_is_shorter_and_expands_to_itself(body in prop::collection::vec(0..4u8, 0..2000)) {
            if let Some(stored) = compress(&body) {
                prop_assert!(stored.len() < body.len());
                prop_assert_eq!(expand(&stored, body.len()).unwrap(), body);
            }
        }

        #[test]
        fn whatever_bytes_come_nothing_panics_or_grows_beyond_the_bound(
            bytes in 0..2000_u32, block in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            let stored = [&bytes.to_be_bytes()[..], &block].concat();
            if let Ok(body) = expand(&stored, 1000) {
                prop_assert_eq!(body.len(), bytes as usize);
                prop_assert!(body.len() <= 1000);
            }
        }
    }
}
