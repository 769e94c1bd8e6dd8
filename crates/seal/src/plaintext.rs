//! What lies under the seal: user headers, key and body, their limits and their bytes.
//!
//! ```text
//! | header_count u16 | { name_len u16 | name | value_len u16 | value } * | form u8 | [ key_len u16 | key ] | body |
//! ```
//! `form`: 1 = there is a key, 2 = the body is compressed (see [`crate::compression`]).

use std::fmt;

use bytes::{BufMut, Bytes};
use swarmmq_protocol::{
    codec::{DecodeError, Reader},
    limits::{
        CIPHERTEXT_BYTES_MAX, KEY_BYTES_MAX, PLAINTEXT_BYTES_MAX, TAG_BYTES, USER_HEADERS_BYTES_MAX,
        USER_HEADERS_MAX,
    },
};

use crate::compression;

/// There is a key.
const KEYED: u8 = 1;
/// The body is compressed.
const COMPRESSED: u8 = 2;

/// A header that the sender's program chose. Sealed: no node sees it.
#[derive(Clone, PartialEq, Eq)]
pub struct UserHeader {
    /// Not empty, and unlike the other names of its message.
    pub name: String,
    /// Any bytes.
    pub value: Bytes,
}

impl fmt::Debug for UserHeader {
    /// Tells sizes, not contents: what is sealed stays out of logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UserHeader")
            .field("name_bytes", &self.name.len())
            .field("value_bytes", &self.value.len())
            .finish()
    }
}

/// What was inside a sealed message. All parts share one buffer.
#[derive(Clone, PartialEq, Eq)]
pub struct Opened {
    /// Its key, if it has one.
    pub key: Option<Bytes>,
    /// In the sender's order.
    pub headers: Vec<UserHeader>,
    /// The payload.
    pub body: Bytes,
}

impl Opened {
    /// Reads an authentic plaintext.
    ///
    /// * `has_key_hash`: whether the clear header says that the message has a key.
    pub(crate) fn read(plaintext: Bytes, has_key_hash: bool) -> Result<Self, DecodeError> {
        let (mut opened, is_compressed) = Self::read_stored(plaintext, has_key_hash)?;
        if is_compressed {
            let headers = Plaintext { body: &[], ..opened.plaintext(false) }.headers_bytes()?;
            opened.body = compression::expand(&opened.body, PLAINTEXT_BYTES_MAX - headers)?;
        }
        Ok(opened)
    }

    /// The same with the body as it lies in the plaintext, and whether that is compressed.
    fn read_stored(plaintext: Bytes, has_key_hash: bool) -> Result<(Self, bool), DecodeError> {
        let mut reader = Reader::new(plaintext);
        let count = usize::from(reader.u16()?);
        if count > USER_HEADERS_MAX {
            return Err(DecodeError::TooLarge("user headers"));
        }
        let mut headers = Vec::with_capacity(count);
        for _ in 0..count {
            let name = reader.text("user header name")?;
            let value_bytes = usize::from(reader.u16()?);
            headers.push(UserHeader { name, value: reader.take(value_bytes)? });
        }
        let form = reader.u8()?;
        if form & !(KEYED | COMPRESSED) != 0 {
            return Err(DecodeError::Invalid("form"));
        }
        let key = if form & KEYED != 0 {
            let key_bytes = usize::from(reader.u16()?);
            Some(reader.take(key_bytes)?)
        } else {
            None
        };
        // The nodes kept the order of keys by the clear hash; a message that tells them otherwise is no message.
        if key.is_some() != has_key_hash {
            return Err(DecodeError::Invalid("key flag"));
        }
        let opened = Self { key, headers, body: reader.rest() };
        let is_compressed = form & COMPRESSED != 0;
        // What may not be sealed may not be opened either: the same check on both ways.
        opened.plaintext(is_compressed).bytes()?;
        Ok((opened, is_compressed))
    }

    fn plaintext(&self, is_compressed: bool) -> Plaintext<'_> {
        let Self { key, headers, body } = self;
        Plaintext { key: key.as_deref(), headers, body, is_compressed }
    }
}

impl fmt::Debug for Opened {
    /// Tells sizes, not contents: what was sealed stays out of logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Opened")
            .field("key_bytes", &self.key.as_ref().map(Bytes::len))
            .field("headers", &self.headers.len())
            .field("body_bytes", &self.body.len())
            .finish()
    }
}

/// The parts of a plaintext, on their way in or out.
pub(crate) struct Plaintext<'a> {
    pub(crate) key: Option<&'a [u8]>,
    pub(crate) headers: &'a [UserHeader],
    /// As it is written.
    pub(crate) body: &'a [u8],
    pub(crate) is_compressed: bool,
}

// Lengths within their limits fit the fields that carry them.
const _: () = assert!(USER_HEADERS_BYTES_MAX <= u16::MAX as usize);
const _: () = assert!(KEY_BYTES_MAX <= u16::MAX as usize);

impl Plaintext<'_> {
    /// The bytes it takes, once everything is within its limit.
    pub(crate) fn bytes(&self) -> Result<usize, ContentError> {
        let content = self.headers_bytes()? + self.body.len();
        if content > PLAINTEXT_BYTES_MAX {
            return Err(ContentError::TooLarge { bytes: content, max: PLAINTEXT_BYTES_MAX });
        }
        let key = self.key.map_or(0, <[u8]>::len);
        if key > KEY_BYTES_MAX {
            return Err(ContentError::KeyTooLong { bytes: key, max: KEY_BYTES_MAX });
        }
        let framing = 2 + 4 * self.headers.len() + 1 + if self.key.is_some() { 2 } else { 0 };
        let (bytes, max) = (framing + key + content, CIPHERTEXT_BYTES_MAX - TAG_BYTES);
        if bytes > max {
            return Err(ContentError::TooLarge { bytes, max });
        }
        Ok(bytes)
    }

    /// Names and values together, in bytes.
    fn headers_bytes(&self) -> Result<usize, ContentError> {
        let headers = self.headers;
        if headers.len() > USER_HEADERS_MAX {
            return Err(ContentError::TooManyHeaders { count: headers.len(), max: USER_HEADERS_MAX });
        }
        let bytes = headers.iter().map(|header| header.name.len() + header.value.len()).sum();
        if bytes > USER_HEADERS_BYTES_MAX {
            return Err(ContentError::HeadersTooLarge { bytes, max: USER_HEADERS_BYTES_MAX });
        }
        for (i, UserHeader { name, .. }) in headers.iter().enumerate() {
            if name.is_empty() {
                return Err(ContentError::EmptyHeaderName);
            }
            if headers[..i].iter().any(|earlier| earlier.name == *name) {
                return Err(ContentError::RepeatedHeader(name.clone()));
            }
        }
        Ok(bytes)
    }

    /// Writes it. Call only what [`Plaintext::bytes`] has accepted.
    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        out.put_u16(self.headers.len() as u16);
        for header in self.headers {
            out.put_u16(header.name.len() as u16);
            out.put_slice(header.name.as_bytes());
            out.put_u16(header.value.len() as u16);
            out.put_slice(&header.value);
        }
        let form = [(self.key.is_some(), KEYED), (self.is_compressed, COMPRESSED)];
        out.put_u8(form.into_iter().filter(|(is, _)| *is).map(|(_, bit)| bit).sum());
        if let Some(key) = self.key {
            out.put_u16(key.len() as u16);
            out.put_slice(key);
        }
        out.put_slice(self.body);
    }
}

/// Why key, headers or body are not allowed. Blame: the sender.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ContentError {
    /// Body and headers together.
    TooLarge {
        /// Bytes found.
        bytes: usize,
        /// Most allowed.
        max: usize,
    },
    /// The key.
    KeyTooLong {
        /// Bytes found.
        bytes: usize,
        /// Most allowed.
        max: usize,
    },
    /// Too many headers.
    TooManyHeaders {
        /// Headers found.
        count: usize,
        /// Most allowed.
        max: usize,
    },
    /// Names and values of all headers together.
    HeadersTooLarge {
        /// Bytes found.
        bytes: usize,
        /// Most allowed.
        max: usize,
    },
    /// A header without a name.
    EmptyHeaderName,
    /// Two headers of this name.
    RepeatedHeader(String),
}

impl fmt::Display for ContentError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLarge { bytes, max } => {
                write!(f, "body and headers take {bytes} bytes where at most {max} are allowed")
            }
            Self::KeyTooLong { bytes, max } => {
                write!(f, "the key has {bytes} bytes where at most {max} are allowed")
            }
            Self::TooManyHeaders { count, max } => {
                write!(f, "{count} headers where at most {max} are allowed")
            }
            Self::HeadersTooLarge { bytes, max } => {
                write!(f, "the headers take {bytes} bytes where at most {max} are allowed")
            }
            Self::EmptyHeaderName => write!(f, "a header has an empty name"),
            Self::RepeatedHeader(name) => write!(f, "the header {name:?} is there twice"),
        }
    }
}

impl std::error::Error for ContentError {}

impl From<ContentError> for DecodeError {
    fn from(error: ContentError) -> Self {
        match error {
            ContentError::TooLarge { .. } => Self::TooLarge("body"),
            ContentError::KeyTooLong { .. } => Self::TooLarge("key"),
            ContentError::TooManyHeaders { .. } | ContentError::HeadersTooLarge { .. } => {
                Self::TooLarge("user headers")
            }
            ContentError::EmptyHeaderName | ContentError::RepeatedHeader(_) => {
                Self::Invalid("user header name")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header(name: &str, value: &[u8]) -> UserHeader {
        UserHeader { name: name.into(), value: Bytes::copy_from_slice(value) }
    }

    #[test]
    fn what_is_not_allowed_has_a_name() {
        let refused = |key, headers: &[UserHeader], body: &[u8]| {
            Plaintext { key, headers, body, is_compressed: false }.bytes().expect_err("must be refused")
        };
        let body = vec![0; PLAINTEXT_BYTES_MAX + 1];
        let many: Vec<UserHeader> = (0..33).map(|i| header(&format!("h{i}"), b"")).collect();
        let large = [header("h", &vec![0; USER_HEADERS_BYTES_MAX])];
        let (bytes, max) = (PLAINTEXT_BYTES_MAX + 1, PLAINTEXT_BYTES_MAX);
        assert_eq!(refused(None, &[], &body), ContentError::TooLarge { bytes, max });
        assert_eq!(refused(None, &[header("h", b"")], &body[1..]), ContentError::TooLarge { bytes, max });
        assert_eq!(refused(Some(&body[..257]), &[], b""), ContentError::KeyTooLong { bytes: 257, max: 256 });
        assert_eq!(refused(None, &many, b""), ContentError::TooManyHeaders { count: 33, max: 32 });
        let (bytes, max) = (USER_HEADERS_BYTES_MAX + 1, USER_HEADERS_BYTES_MAX);
        assert_eq!(refused(None, &large, b""), ContentError::HeadersTooLarge { bytes, max });
        assert_eq!(refused(None, &[header("", b"")], b""), ContentError::EmptyHeaderName);
        let twice = [header("h", b"1"), header("h", b"2")];
        assert_eq!(refused(None, &twice, b""), ContentError::RepeatedHeader("h".into()));
    }

    #[test]
    fn authentic_bytes_that_hold_no_message_are_refused() {
        let read =
            |plaintext: &[u8], has_key_hash| Opened::read(Bytes::copy_from_slice(plaintext), has_key_hash);
        let name = Err(DecodeError::Invalid("user header name"));
        assert_eq!(read(b"", false), Err(DecodeError::Truncated));
        assert_eq!(read(&[0, 0], false), Err(DecodeError::Truncated));
        assert_eq!(read(&[0, 33], false), Err(DecodeError::TooLarge("user headers")));
        assert_eq!(read(&[0, 1, 0xff, 0xff, 1], false), Err(DecodeError::Truncated));
        assert_eq!(read(&[0, 1, 0, 1, 0xff, 0, 0, 0], false), name);
        assert_eq!(read(&[0, 1, 0, 0, 0, 0, 0], false), name);
        assert_eq!(read(&[0, 2, 0, 1, b'h', 0, 0, 0, 1, b'h', 0, 0, 0], false), name);
        assert_eq!(read(&[0, 0, 4], false), Err(DecodeError::Invalid("form")));
        assert_eq!(read(&[0, 0, 2], false), Err(DecodeError::Truncated));
        assert_eq!(read(&[0, 0, 2, 0, 0, 0, 9, 1], false), Err(DecodeError::Invalid("compressed body")));
        assert_eq!(read(&[0, 0, 2, 0, 0x10, 0, 1], false), Err(DecodeError::TooLarge("body")));
        assert_eq!(read(&[0, 0, 2], true), Err(DecodeError::Invalid("key flag")));
        assert_eq!(read(&[0, 0, 0], true), Err(DecodeError::Invalid("key flag")));
        assert_eq!(read(&[0, 0, 1, 0, 1, 7], false), Err(DecodeError::Invalid("key flag")));
        assert_eq!(
            read(&[&[0, 0, 1, 1, 1][..], &[7; 257]].concat(), true),
            Err(DecodeError::TooLarge("key"))
        );
        let body = vec![0; 3 + PLAINTEXT_BYTES_MAX + 1];
        assert_eq!(read(&body, false), Err(DecodeError::TooLarge("body")));
        assert_eq!(read(&[0, 0, 1, 0, 1, 7], true).unwrap().key.as_deref(), Some(&[7][..]));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn a_plaintext_that_reads_has_only_this_encoding(
            plaintext in proptest::collection::vec(0..4u8, 0..40),
            keyed: bool,
        ) {
            if let Ok((opened, is_compressed)) = Opened::read_stored(Bytes::from(plaintext.clone()), keyed) {
                let again = opened.plaintext(is_compressed);
                let mut bytes = Vec::new();
                again.write(&mut bytes);
                prop_assert_eq!(again.bytes(), Ok(bytes.len()));
                prop_assert_eq!(bytes, plaintext);
            }
        }
    }
}
