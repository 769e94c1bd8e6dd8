//! RESP, what Redis speaks: commands are arrays of texts, answers are values.
//!
//! Source: "Redis serialization protocol specification", version 2.

use std::ops::Range;

use bytes::{BufMut, Bytes, BytesMut};

use crate::failure::{Failure, Outcome};

/// How deep arrays lie in each other, at most.
const DEPTH_MAX: usize = 8;

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Value {
    Text(Bytes),
    Number(i64),
    Array(Vec<Value>),
    Nothing,
    Error(String),
}

/// Appends a command.
pub(crate) fn put_command(out: &mut BytesMut, words: &[&[u8]]) {
    put_length(out, b'*', words.len());
    for word in words {
        put_length(out, b'$', word.len());
        out.put_slice(word);
        out.put_slice(b"\r\n");
    }
}

fn put_length(out: &mut BytesMut, kind: u8, length: usize) {
    out.put_u8(kind);
    out.put_slice(length.to_string().as_bytes());
    out.put_slice(b"\r\n");
}

/// Takes one answer off the front; `None` until there is a whole one.
pub(crate) fn take_value(input: &mut BytesMut) -> Outcome<Option<Value>> {
    let Some(length) = length_of(input, 0, 0)? else { return Ok(None) };
    let whole = input.split_to(length).freeze();
    let mut at = 0;
    value(&whole, &mut at).map(Some)
}

fn malformed() -> Failure {
    Failure::broken("what Redis said is not RESP")
}

/// Where the line that begins at `at` ends, without its end.
fn line(input: &[u8], at: usize) -> Option<Range<usize>> {
    let rest = input.get(at..)?;
    rest.windows(2).position(|window| window == b"\r\n").map(|length| at..at + length)
}

fn number(text: &[u8]) -> Outcome<i64> {
    std::str::from_utf8(text).ok().and_then(|text| text.parse().ok()).ok_or_else(malformed)
}

/// Where the value that begins at `at` ends; `None`: not yet.
fn length_of(input: &[u8], at: usize, depth: usize) -> Outcome<Option<usize>> {
    let Some(line) = line(input, at) else { return Ok(None) };
    let after = line.end + 2;
    let Some((kind, rest)) = input[line].split_first() else { return Err(malformed()) };
    match kind {
        b'+' | b'-' | b':' => Ok(Some(after)),
        b'$' => {
            let length = number(rest)?;
            let end =
                if length < 0 { after } else { after.saturating_add(length as usize).saturating_add(2) };
            Ok((input.len() >= end).then_some(end))
        }
        b'*' if depth < DEPTH_MAX => {
            let mut end = after;
            for _ in 0..number(rest)? {
                match length_of(input, end, depth + 1)? {
                    Some(next) => end = next,
                    None => return Ok(None),
                }
            }
            Ok(Some(end))
        }
        _ => Err(malformed()),
    }
}

/// Reads a value that is known to be whole.
fn value(input: &Bytes, at: &mut usize) -> Outcome<Value> {
    let line = line(input, *at).ok_or_else(malformed)?;
    *at = line.end + 2;
    let text = line.start + 1..line.end;
    match input[line.start] {
        b'+' => Ok(Value::Text(input.slice(text))),
        b'-' => Ok(Value::Error(String::from_utf8_lossy(&input[text]).into_owned())),
        b':' => number(&input[text]).map(Value::Number),
        b'$' => {
            let length = number(&input[text])?;
            if length < 0 {
                return Ok(Value::Nothing);
            }
            let begin = *at;
            *at = begin + length as usize + 2;
            Ok(Value::Text(input.slice(begin..begin + length as usize)))
        }
        _ => {
            let count = number(&input[text])?;
            if count < 0 {
                return Ok(Value::Nothing);
            }
            (0..count).map(|_| value(input, at)).collect::<Outcome<_>>().map(Value::Array)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &'static str) -> Value {
        Value::Text(Bytes::from_static(text.as_bytes()))
    }

    #[test]
    fn a_command_is_an_array_of_texts() {
        let mut out = BytesMut::new();
        put_command(&mut out, &[b"XLEN", b"a\r\nb"]);
        assert_eq!(&out[..], b"*2\r\n$4\r\nXLEN\r\n$4\r\na\r\nb\r\n");
    }

    #[test]
    fn a_value_is_taken_only_when_it_is_whole() {
        let whole = b"*4\r\n$3\r\na\r\n\r\n:-7\r\n*1\r\n$-1\r\n+OK\r\n";
        for length in 0..whole.len() {
            let mut cut = BytesMut::from(&whole[..length]);
            assert_eq!(take_value(&mut cut), Ok(None), "{length}");
            assert_eq!(cut.len(), length, "nothing is lost");
        }
        let mut input = BytesMut::from(&whole[..]);
        input.extend_from_slice(b":1");
        let expected = Value::Array(vec![
            text("a\r\n"),
            Value::Number(-7),
            Value::Array(vec![Value::Nothing]),
            text("OK"),
        ]);
        assert_eq!(take_value(&mut input), Ok(Some(expected)));
        assert_eq!(&input[..], b":1");
    }

    #[test]
    fn nothing_and_errors_are_values() {
        let mut input = BytesMut::from(&b"*-1\r\n-ERR no\r\n"[..]);
        assert_eq!(take_value(&mut input), Ok(Some(Value::Nothing)));
        assert_eq!(take_value(&mut input), Ok(Some(Value::Error("ERR no".into()))));
    }

    #[test]
    fn what_is_not_resp_is_refused() {
        for bytes in [&b"?\r\n"[..], b"$x\r\n", b"\r\n", &b"*1\r\n".repeat(20)] {
            assert!(take_value(&mut BytesMut::from(bytes)).is_err(), "{bytes:?}");
        }
    }
}
