//! AMQP 0-9-1, as much of it as publishing with confirmation and consuming take: frames, and the methods in them.
//!
//! Source: the specification, "AMQP 0-9-1 complete reference guide", and RabbitMQ's extension for confirmations.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::failure::{Failure, Outcome};

/// What a client says first.
pub(crate) const GREETING: &[u8] = b"AMQP\x00\x00\x09\x01";
/// A frame before its payload: kind, channel, length.
const FRAME_HEADER_BYTES: usize = 7;
const FRAME_END: u8 = 0xce;
/// Largest frame that is believed.
const FRAME_BYTES_MAX: usize = 1 << 20;
pub(crate) const FRAME_METHOD: u8 = 1;
pub(crate) const FRAME_HEADER: u8 = 2;
pub(crate) const FRAME_BODY: u8 = 3;

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) channel: u16,
    pub(crate) payload: Bytes,
}

/// Takes one frame off the front; `None` until there is a whole one.
pub(crate) fn take_frame(input: &mut BytesMut) -> Outcome<Option<Frame>> {
    let Some(header) = input.first_chunk::<FRAME_HEADER_BYTES>() else { return Ok(None) };
    let kind = header[0];
    let channel = u16::from_be_bytes([header[1], header[2]]);
    let length = u32::from_be_bytes([header[3], header[4], header[5], header[6]]) as usize;
    if length > FRAME_BYTES_MAX {
        return Err(Failure::broken(format!("an AMQP frame of {length} bytes")));
    }
    if input.len() < FRAME_HEADER_BYTES + length + 1 {
        return Ok(None);
    }
    input.advance(FRAME_HEADER_BYTES);
    let payload = input.split_to(length).freeze();
    if input.get_u8() != FRAME_END {
        return Err(Failure::broken("an AMQP frame does not end where it should"));
    }
    Ok(Some(Frame { kind, channel, payload }))
}

/// Appends a frame.
pub(crate) fn put_frame(out: &mut BytesMut, kind: u8, channel: u16, payload: &[u8]) {
    out.reserve(FRAME_HEADER_BYTES + payload.len() + 1);
    out.put_u8(kind);
    out.put_u16(channel);
    out.put_u32(payload.len() as u32);
    out.put_slice(payload);
    out.put_u8(FRAME_END);
}

/// Builds a method: class, number, arguments.
pub(crate) struct Method(BytesMut);

impl Method {
    pub(crate) fn new(class: u16, number: u16) -> Self {
        let mut bytes = BytesMut::with_capacity(64);
        bytes.put_u16(class);
        bytes.put_u16(number);
        Self(bytes)
    }

    pub(crate) fn u8(mut self, value: u8) -> Self {
        self.0.put_u8(value);
        self
    }

    pub(crate) fn u16(mut self, value: u16) -> Self {
        self.0.put_u16(value);
        self
    }

    pub(crate) fn u32(mut self, value: u32) -> Self {
        self.0.put_u32(value);
        self
    }

    pub(crate) fn u64(mut self, value: u64) -> Self {
        self.0.put_u64(value);
        self
    }

    /// At most 255 bytes.
    pub(crate) fn short(mut self, text: &str) -> Self {
        self.0.put_u8(text.len() as u8);
        self.0.put_slice(text.as_bytes());
        self
    }

    pub(crate) fn long(mut self, text: &[u8]) -> Self {
        self.0.put_u32(text.len() as u32);
        self.0.put_slice(text);
        self
    }

    /// A table of texts and numbers.
    pub(crate) fn table(mut self, entries: &[(&str, Value<'_>)]) -> Self {
        let mut table = BytesMut::new();
        for (name, value) in entries {
            table.put_u8(name.len() as u8);
            table.put_slice(name.as_bytes());
            match value {
                Value::Text(text) => {
                    table.put_u8(b'S');
                    table.put_u32(text.len() as u32);
                    table.put_slice(text.as_bytes());
                }
                Value::Number(number) => {
                    table.put_u8(b'I');
                    table.put_i32(*number);
                }
            }
        }
        self.0.put_u32(table.len() as u32);
        self.0.put_slice(&table);
        self
    }

    pub(crate) fn put(self, out: &mut BytesMut, channel: u16) {
        put_frame(out, FRAME_METHOD, channel, &self.0);
    }
}

/// What stands in a table.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Value<'a> {
    Text(&'a str),
    Number(i32),
}

/// Appends a message to a queue, by way of the default exchange: three frames.
pub(crate) fn put_publish(out: &mut BytesMut, channel: u16, queue: &str, body: &[u8]) {
    Method::new(60, 40).u16(0).short("").short(queue).u8(0).put(out, channel);
    let mut header = BytesMut::with_capacity(15);
    header.put_u16(60);
    header.put_u16(0);
    header.put_u64(body.len() as u64);
    // One property: delivery mode 2, persistent.
    header.put_u16(1 << 12);
    header.put_u8(2);
    put_frame(out, FRAME_HEADER, channel, &header);
    put_frame(out, FRAME_BODY, channel, body);
}

/// What a server says, as far as it matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Said {
    Start {
        version: String,
    },
    Tune {
        channels_max: u16,
        frame_max: u32,
    },
    Confirmed {
        tag: u64,
        multiple: bool,
    },
    /// Not taken: to be sent again.
    Refused {
        tag: u64,
        multiple: bool,
    },
    Deliver {
        tag: u64,
        again: bool,
    },
    Closed(String),
    /// An answer that says only that it was done: class and method.
    Done(u16, u16),
}

/// Reads a method frame.
pub(crate) fn said(mut payload: Bytes) -> Outcome<Said> {
    let short = || Failure::broken("an AMQP method is cut short");
    let class = payload.try_get_u16().map_err(|_| short())?;
    let number = payload.try_get_u16().map_err(|_| short())?;
    Ok(match (class, number) {
        (10, 10) => Said::Start { version: version(&payload) },
        (10, 30) => Said::Tune {
            channels_max: payload.try_get_u16().map_err(|_| short())?,
            frame_max: payload.try_get_u32().map_err(|_| short())?,
        },
        (60, 80) | (60, 120) => {
            let tag = payload.try_get_u64().map_err(|_| short())?;
            let multiple = payload.try_get_u8().map_err(|_| short())? & 1 == 1;
            if number == 80 { Said::Confirmed { tag, multiple } } else { Said::Refused { tag, multiple } }
        }
        (60, 60) => {
            let name = usize::from(payload.try_get_u8().map_err(|_| short())?);
            if payload.len() < name {
                return Err(short());
            }
            payload.advance(name);
            let tag = payload.try_get_u64().map_err(|_| short())?;
            Said::Deliver { tag, again: payload.try_get_u8().map_err(|_| short())? & 1 == 1 }
        }
        (10, 50) | (20, 40) => {
            let code = payload.try_get_u16().map_err(|_| short())?;
            let length = usize::from(payload.try_get_u8().map_err(|_| short())?).min(payload.len());
            Said::Closed(format!("{code} {}", String::from_utf8_lossy(&payload[..length])))
        }
        (class, number) => Said::Done(class, number),
    })
}

/// The size of a body, from a header frame.
pub(crate) fn body_size(mut header: Bytes) -> Outcome<usize> {
    if header.len() < 12 {
        return Err(Failure::broken("an AMQP header is cut short"));
    }
    header.advance(4);
    Ok(header.get_u64() as usize)
}

/// The text called `version` among the server's properties; empty if there is none.
fn version(properties: &[u8]) -> String {
    const NAME: &[u8] = b"\x07versionS";
    let find = || {
        let at = properties.windows(NAME.len()).position(|window| window == NAME)? + NAME.len();
        let length = u32::from_be_bytes(*properties.get(at..)?.first_chunk()?) as usize;
        let text = properties.get(at + 4..at + 4 + length)?;
        Some(String::from_utf8_lossy(text).into_owned())
    };
    find().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_taken_only_when_it_is_whole() {
        let mut whole = BytesMut::new();
        put_frame(&mut whole, FRAME_BODY, 1, b"hello");
        assert_eq!(&whole[..], b"\x03\x00\x01\x00\x00\x00\x05hello\xce");
        for length in 0..whole.len() {
            let mut cut = BytesMut::from(&whole[..length]);
            assert_eq!(take_frame(&mut cut), Ok(None));
            assert_eq!(cut.len(), length, "nothing is lost");
        }
        let mut two = BytesMut::from(&whole[..]);
        two.extend_from_slice(&whole[..3]);
        let frame = take_frame(&mut two).unwrap().unwrap();
        assert_eq!((frame.kind, frame.channel, &frame.payload[..]), (FRAME_BODY, 1, &b"hello"[..]));
        assert_eq!(two.len(), 3);
    }

    #[test]
    fn frames_that_lie_are_refused() {
        let mut huge = BytesMut::from(&b"\x01\x00\x00\xff\xff\xff\xff"[..]);
        assert!(take_frame(&mut huge).is_err());
        let mut unended = BytesMut::from(&b"\x01\x00\x00\x00\x00\x00\x01a\x00"[..]);
        assert!(take_frame(&mut unended).is_err());
    }

    #[test]
    fn a_message_is_three_frames() {
        let mut out = BytesMut::new();
        put_publish(&mut out, 1, "q", b"body");
        let frames: Vec<Frame> = std::iter::from_fn(|| take_frame(&mut out).unwrap()).collect();
        assert_eq!(frames.iter().map(|frame| frame.kind).collect::<Vec<_>>(), [1, 2, 3]);
        assert_eq!(&frames[0].payload[..], b"\x00\x3c\x00\x28\x00\x00\x00\x01q\x00");
        assert_eq!(body_size(frames[1].payload.clone()), Ok(4));
        assert_eq!(&frames[1].payload[12..], b"\x10\x00\x02");
        assert_eq!(&frames[2].payload[..], b"body");
    }

    fn read(method: Method) -> Outcome<Said> {
        said(method.0.freeze())
    }

    #[test]
    fn what_a_server_says_is_understood() {
        let start = Method::new(10, 10)
            .u8(0)
            .u8(9)
            .table(&[("product", Value::Text("R")), ("version", Value::Text("3.10"))]);
        assert_eq!(read(start), Ok(Said::Start { version: "3.10".into() }));
        assert_eq!(read(Method::new(60, 80).u64(7).u8(1)), Ok(Said::Confirmed { tag: 7, multiple: true }));
        assert_eq!(read(Method::new(60, 120).u64(7).u8(0)), Ok(Said::Refused { tag: 7, multiple: false }));
        let deliver = Method::new(60, 60).short("c").u64(9).u8(1).short("").short("q");
        assert_eq!(read(deliver), Ok(Said::Deliver { tag: 9, again: true }));
        assert_eq!(read(Method::new(10, 50).u16(320).short("bye")), Ok(Said::Closed("320 bye".into())));
        assert_eq!(read(Method::new(20, 11)), Ok(Said::Done(20, 11)));
    }

    #[test]
    fn methods_that_are_cut_short_are_refused() {
        assert!(said(Bytes::from_static(b"\x00")).is_err());
        assert!(read(Method::new(60, 80).u32(7)).is_err());
        assert!(read(Method::new(60, 60).u8(200)).is_err());
        assert!(body_size(Bytes::from_static(b"\x00\x3c")).is_err());
    }
}
