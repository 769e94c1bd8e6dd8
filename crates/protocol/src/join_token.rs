//! What lets one more node into a cluster, once: a text that an operator carries from the cluster to the node.
//!
//! ```text
//! swarmmq-join-1.CLUSTER.SECRET.CHECK      32, 64 and 8 hex digits
//! CHECK = the first 4 bytes of SHA-256("swarmmq/join/check/v1" then cluster u128 then secret)
//! ```
//! The cluster keeps SHA-256("swarmmq/join/hash/v1" then secret) and nothing else of it. The check is there so that a token
//! that was mistyped is told apart before anybody is asked; the cluster says, to people and programs, whose it is.

use std::fmt;

use zeroize::Zeroizing;

use crate::{id::ClusterId, mac::sha256};

/// First part of the text, with the version of its form.
const BEGIN: &str = "swarmmq-join-1";
/// Longest text that is looked at, in bytes; a whole one has 121.
pub const TEXT_BYTES_MAX: usize = 128;

/// A join token. Its secret is zeroed when it is dropped, and never shown.
#[derive(Clone)]
pub struct JoinToken {
    cluster: ClusterId,
    secret: Zeroizing<[u8; 32]>,
}

/// Why a text is no join token. Nothing changed, nobody was asked. Blame: whoever copied it. Never holds a part of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenError {
    /// Not of the form of a join token.
    Form,
    /// Of the right form, and mistyped.
    Check,
}

impl fmt::Display for TokenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Form => "this is no join token: one begins with swarmmq-join-1.",
            Self::Check => "the join token is mistyped or cut short: its check digits do not match",
        })
    }
}

impl std::error::Error for TokenError {}

impl JoinToken {
    /// A token of this cluster; `secret` is 32 fresh random bytes.
    pub fn new(cluster: ClusterId, secret: [u8; 32]) -> Self {
        Self { cluster, secret: Zeroizing::new(secret) }
    }

    /// Reads a token; white space around it is ignored.
    pub fn parse(text: &str) -> Result<Self, TokenError> {
        let text = text.trim();
        if text.len() > TEXT_BYTES_MAX {
            return Err(TokenError::Form);
        }
        let mut parts = text.split('.');
        let mut next = || parts.next().ok_or(TokenError::Form);
        let (begin, cluster, secret, check) = (next()?, next()?, next()?, next()?);
        if begin != BEGIN || parts.next().is_some() {
            return Err(TokenError::Form);
        }
        let cluster: [u8; 16] = unhex(cluster)?;
        let token =
            Self { cluster: ClusterId(u128::from_be_bytes(cluster)), secret: Zeroizing::new(unhex(secret)?) };
        if unhex::<4>(check)? == token.check() { Ok(token) } else { Err(TokenError::Check) }
    }

    /// The text. Secret: whoever has it, and the secret between nodes, can join.
    pub fn to_text(&self) -> Zeroizing<String> {
        let mut text = Zeroizing::new(String::with_capacity(TEXT_BYTES_MAX));
        text.push_str(BEGIN);
        let check = self.check();
        for part in [&self.cluster.0.to_be_bytes()[..], &self.secret[..], &check[..]] {
            text.push('.');
            for byte in part {
                for digit in [byte >> 4, byte & 15] {
                    text.push(char::from_digit(digit.into(), 16).expect("a digit below 16"));
                }
            }
        }
        text
    }

    /// Whose nodes it makes.
    pub fn cluster(&self) -> ClusterId {
        self.cluster
    }

    pub(crate) fn secret(&self) -> &[u8; 32] {
        &self.secret
    }

    /// What the cluster remembers of it.
    pub fn hash(&self) -> [u8; 32] {
        hash(&self.secret)
    }

    fn check(&self) -> [u8; 4] {
        let hash = sha256(&[b"swarmmq/join/check/v1", &self.cluster.0.to_be_bytes(), &self.secret[..]]);
        hash[..4].try_into().expect("4 of 32 bytes")
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JoinToken(..)")
    }
}

/// What the cluster remembers of a token with this secret.
pub(crate) fn hash(secret: &[u8; 32]) -> [u8; 32] {
    sha256(&[b"swarmmq/join/hash/v1", secret])
}

fn unhex<const N: usize>(text: &str) -> Result<[u8; N], TokenError> {
    let mut bytes = [0; N];
    if text.len() != 2 * N {
        return Err(TokenError::Form);
    }
    for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        let digit = |c: u8| char::from(c).to_digit(16).ok_or(TokenError::Form);
        *byte = (digit(pair[0])? << 4 | digit(pair[1])?) as u8;
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> JoinToken {
        JoinToken::new(ClusterId(0x1234), [0xc7; 32])
    }

    #[test]
    fn a_token_reads_back_and_is_never_shown() {
        let text = token().to_text();
        assert_eq!(text.len(), 121);
        let read = JoinToken::parse(&format!("  {}\n", *text)).unwrap();
        assert_eq!((read.cluster(), read.hash()), (ClusterId(0x1234), token().hash()));
        assert_eq!(format!("{read:?}"), "JoinToken(..)");
    }

    #[test]
    fn every_mistyped_digit_is_noticed_before_anybody_is_asked() {
        let text = token().to_text();
        for at in BEGIN.len() + 1..text.len() {
            let mut wrong = text.to_string().into_bytes();
            wrong[at] = match wrong[at] {
                b'.' => b'0',
                b'0' => b'1',
                _ => b'0',
            };
            assert!(JoinToken::parse(std::str::from_utf8(&wrong).unwrap()).is_err(), "digit {at}");
        }
        for length in 0..text.len() {
            assert!(JoinToken::parse(&text[..length]).is_err(), "{length}");
        }
    }

    #[test]
    fn what_is_no_token_at_all_is_told_apart() {
        for text in ["", "swarmmq-join-2.00.00.00", "swarmmq-join-1.zz.00.00", &"a.".repeat(100)] {
            assert_eq!(JoinToken::parse(text).unwrap_err(), TokenError::Form, "{text}");
        }
        let text = token().to_text();
        let digit = if text.ends_with('0') { '1' } else { '0' };
        let wrong = format!("{}{digit}", &text[..text.len() - 1]);
        assert_eq!(JoinToken::parse(&wrong).unwrap_err(), TokenError::Check);
    }
}
