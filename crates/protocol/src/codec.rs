//! Bytes in and out: big-endian values, bounded reading, nothing allocated before a bound is checked.

use std::fmt;

use bytes::{BufMut, Bytes, BytesMut};

use crate::id::{Address, GroupName, ProducerName};

/// Why bytes from outside could not be read. Nothing changed. Blame: the peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DecodeError {
    /// The bytes end before the value does.
    Truncated,
    /// Bytes are left after the last value.
    TrailingBytes(usize),
    /// A value that this version does not know or allow; which field.
    Invalid(&'static str),
    /// A count or length above its limit; which field.
    TooLarge(&'static str),
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Truncated => write!(f, "the bytes end too early"),
            Self::TrailingBytes(count) => write!(f, "{count} bytes too many"),
            Self::Invalid(field) => write!(f, "{field} has a value that is not allowed"),
            Self::TooLarge(field) => write!(f, "{field} is above its limit"),
        }
    }
}

impl std::error::Error for DecodeError {}

/// Reads values off a shared buffer without copying it.
#[derive(Debug)]
pub struct Reader {
    bytes: Bytes,
    keeps: bool,
}

impl Reader {
    /// Begins at the first byte.
    pub fn new(bytes: Bytes) -> Self {
        Self { bytes, keeps: true }
    }

    /// Begins at the first byte, only to see whether everything can be read: texts and lists come out empty.
    pub fn checking(bytes: Bytes) -> Self {
        Self { bytes, keeps: false }
    }

    /// Bytes left.
    pub fn remaining(&self) -> usize {
        self.bytes.len()
    }

    /// The next `count` bytes, shared.
    pub fn take(&mut self, count: usize) -> Result<Bytes, DecodeError> {
        if count > self.bytes.len() {
            return Err(DecodeError::Truncated);
        }
        Ok(self.bytes.split_to(count))
    }

    /// Everything left, shared.
    pub fn rest(&mut self) -> Bytes {
        std::mem::take(&mut self.bytes)
    }

    /// The bytes not read yet.
    pub fn peek(&self) -> &[u8] {
        &self.bytes
    }

    /// The next `N` bytes.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let found = self.bytes.get(..N).ok_or(DecodeError::Truncated)?;
        let array = found.try_into().expect("the slice has exactly N bytes");
        bytes::Buf::advance(&mut self.bytes, N);
        Ok(array)
    }

    /// One byte.
    pub fn u8(&mut self) -> Result<u8, DecodeError> {
        Ok(self.array::<1>()?[0])
    }

    /// Two bytes.
    pub fn u16(&mut self) -> Result<u16, DecodeError> {
        self.array().map(u16::from_be_bytes)
    }

    /// Four bytes.
    pub fn u32(&mut self) -> Result<u32, DecodeError> {
        self.array().map(u32::from_be_bytes)
    }

    /// Eight bytes.
    pub fn u64(&mut self) -> Result<u64, DecodeError> {
        self.array().map(u64::from_be_bytes)
    }

    /// Sixteen bytes.
    pub fn u128(&mut self) -> Result<u128, DecodeError> {
        self.array().map(u128::from_be_bytes)
    }

    /// A byte that is 0 or 1.
    pub fn flag(&mut self, field: &'static str) -> Result<bool, DecodeError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(DecodeError::Invalid(field)),
        }
    }

    /// A count of items of at least `item_bytes` each, checked against what is left, so that nothing larger is ever
    /// allocated.
    pub fn count(&self, count: usize, item_bytes: usize, field: &'static str) -> Result<usize, DecodeError> {
        if count.saturating_mul(item_bytes) > self.bytes.len() {
            return Err(DecodeError::TooLarge(field));
        }
        Ok(count)
    }

    /// `count` items of at least `item_bytes` each, as `read` reads one.
    pub fn list<T>(
        &mut self,
        count: usize,
        item_bytes: usize,
        field: &'static str,
        mut read: impl FnMut(&mut Self) -> Result<T, DecodeError>,
    ) -> Result<Vec<T>, DecodeError> {
        let count = self.count(count, item_bytes, field)?;
        let mut items = Vec::with_capacity(if self.keeps { count } else { 0 });
        for _ in 0..count {
            let item = read(self)?;
            if self.keeps {
                items.push(item);
            }
        }
        Ok(items)
    }

    /// A text behind its length (u8).
    pub fn name(&mut self, field: &'static str) -> Result<String, DecodeError> {
        let length = self.u8()?.into();
        self.owned(length, field)
    }

    /// A text behind its length (u16).
    pub fn text(&mut self, field: &'static str) -> Result<String, DecodeError> {
        self.text_within(u16::MAX.into(), field)
    }

    /// A text of at most `bytes_max` bytes behind its length (u16).
    pub fn text_within(&mut self, bytes_max: usize, field: &'static str) -> Result<String, DecodeError> {
        let length = usize::from(self.u16()?);
        if length > bytes_max {
            return Err(DecodeError::TooLarge(field));
        }
        self.owned(length, field)
    }

    fn owned(&mut self, length: usize, field: &'static str) -> Result<String, DecodeError> {
        let keeps = self.keeps;
        self.utf8(length, field, |text| if keeps { text.to_owned() } else { String::new() })
    }

    fn utf8<T>(
        &mut self,
        length: usize,
        field: &'static str,
        make: impl FnOnce(&str) -> T,
    ) -> Result<T, DecodeError> {
        let bytes = self.take(length)?;
        std::str::from_utf8(&bytes).map(make).map_err(|_| DecodeError::Invalid(field))
    }

    /// An address behind its length (u8).
    pub fn address(&mut self) -> Result<Address, DecodeError> {
        let length = self.u8()?.into();
        self.utf8(length, "address", Address::parse)?.map_err(|_| DecodeError::Invalid("address"))
    }

    /// A group name behind its length (u8).
    pub fn group(&mut self) -> Result<GroupName, DecodeError> {
        let length = self.u8()?.into();
        self.utf8(length, "group", GroupName::parse)?.map_err(|_| DecodeError::Invalid("group"))
    }

    /// A producer's name with its length in one byte.
    pub fn producer_name(&mut self) -> Result<ProducerName, DecodeError> {
        let length = self.u8()?.into();
        self.utf8(length, "producer name", ProducerName::parse)?
            .map_err(|_| DecodeError::Invalid("producer name"))
    }

    /// Nothing may be left.
    pub fn end(&self) -> Result<(), DecodeError> {
        if self.bytes.is_empty() { Ok(()) } else { Err(DecodeError::TrailingBytes(self.bytes.len())) }
    }
}

/// Writes a text of at most 255 bytes behind its length (u8); longer ones are cut at a character.
pub fn put_name(out: &mut BytesMut, text: &str) {
    let cut = cut_at(text, u8::MAX.into());
    out.put_u8(cut.len() as u8);
    out.put_slice(cut.as_bytes());
}

/// Writes a text of at most 65,535 bytes behind its length (u16); longer ones are cut at a character.
pub fn put_text(out: &mut BytesMut, text: &str) {
    let cut = cut_at(text, u16::MAX.into());
    out.put_u16(cut.len() as u16);
    out.put_slice(cut.as_bytes());
}

/// The longest start of `text` that has at most `bytes_max` bytes and ends between characters.
pub fn cut_at(text: &str, bytes_max: usize) -> &str {
    let mut length = text.len().min(bytes_max);
    while !text.is_char_boundary(length) {
        length -= 1;
    }
    &text[..length]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_is_checked_against_what_is_left_before_anything_is_allocated() {
        let reader = Reader::new(Bytes::from_static(&[0; 100]));
        assert_eq!(reader.count(10, 10, "items"), Ok(10));
        assert_eq!(reader.count(11, 10, "items"), Err(DecodeError::TooLarge("items")));
        assert_eq!(reader.count(usize::MAX, 10, "items"), Err(DecodeError::TooLarge("items")));
    }

    #[test]
    fn long_texts_are_cut_between_characters() {
        assert_eq!(cut_at("aä", 2), "a");
        assert_eq!(cut_at("aä", 3), "aä");
    }
}
