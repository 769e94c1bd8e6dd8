//! What nodes write to each other: the body of a packet, one letter each.
//!
//! ```text
//! letter | kind u8 | body |                          (big-endian; kinds are never reused)
//! ```
//! Letters come from nodes that proved to belong to the cluster. What does not read is dropped and counted; nothing is
//! allocated before its length was checked against the bytes that are there.

use bytes::{BufMut, Bytes, BytesMut};
use swarmmq_protocol::{
    codec::{DecodeError, Reader},
    consensus::{Message, batch_bytes, decode_batch, encode_batch},
    error::{Code, Outcome as Fate},
    id::{Address, Attempt, NodeId, Offset, ShardId, Term},
};

use super::{question::Question, survey::Wanted};
use crate::shard::{
    Answer,
    intake::{Payload, StatePart},
    state::{Outcome, Placed, PlacedRun},
};

/// A message on its way from a leader to the node that has its consumer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Parcel {
    pub(super) offset: Offset,
    pub(super) attempt: Attempt,
    pub(super) lease_millis: u32,
    pub(super) reason: String,
    pub(super) sealed: Bytes,
}

/// What a leader says of its shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Lead {
    pub(super) shard: ShardId,
    pub(super) term: Term,
    /// Up to where it has applied the log.
    pub(super) applied: u64,
    pub(super) voters: Vec<u64>,
    pub(super) learners: Vec<u64>,
    /// Nobody could believe in an earlier group any more, whoever restarts.
    pub(super) is_settled: bool,
    pub(super) in_sync: Vec<u64>,
}

/// What one node says to another.
#[derive(Clone, Debug)]
pub(super) enum Letter {
    Consensus(Vec<(ShardId, Message)>),
    Ask {
        ticket: u64,
        shard: ShardId,
        question: Question,
    },
    Answer {
        ticket: u64,
        answer: Answer,
    },
    Deliver {
        subscriber: u64,
        shard: ShardId,
        term: Term,
        parcels: Vec<Parcel>,
    },
    Expired {
        subscriber: u64,
        shard: ShardId,
        term: Term,
        items: Vec<(Offset, Attempt)>,
    },
    /// So many sealed bytes of deliveries arrived since this was said last.
    Arrived(u64),
    Leads(Vec<Lead>),
    StateWanted {
        shard: ShardId,
    },
    StatePart {
        shard: ShardId,
        part: StatePart,
    },
    /// So many parts of a state are there, from the first on: more may follow.
    PartsCame {
        shard: ShardId,
        index: u64,
        term: u64,
        come: u32,
    },
    PayloadsWanted {
        shard: ShardId,
        items: Vec<(Address, u64)>,
    },
    Payloads {
        shard: ShardId,
        items: Vec<Payload>,
    },
    /// A packet could not go on to its destination, because of the writer's link with `next`.
    Broken {
        destination: NodeId,
        next: NodeId,
    },
    /// How the writer's disk is.
    Health(Health),
    /// Whether the writer is too slow to lead, as it judges itself.
    Slow(bool),
    /// Which way the reader's packets take, and why.
    RoutesWanted {
        ticket: u64,
        wanted: Wanted,
    },
    /// The answer to that.
    Routes {
        ticket: u64,
        said: Bytes,
    },
}

/// How a node's disk is, in its own words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Health {
    /// Less is free than its reserve: it takes no new messages.
    pub(super) is_below_reserve: bool,
    /// Its log stopped: it stores nothing any more.
    pub(super) has_stopped: bool,
}

pub(super) fn put_bytes(out: &mut BytesMut, bytes: &[u8]) {
    out.put_u32(bytes.len() as u32);
    out.put_slice(bytes);
}

pub(super) fn bytes(r: &mut Reader) -> Result<Bytes, DecodeError> {
    let length = r.u32()? as usize;
    r.take(length)
}

pub(super) fn put_text(out: &mut BytesMut, text: &str) {
    let mut end = text.len().min(usize::from(u16::MAX));
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    out.put_u16(end as u16);
    out.put_slice(&text.as_bytes()[..end]);
}

pub(super) fn text(r: &mut Reader) -> Result<String, DecodeError> {
    let length = usize::from(r.u16()?);
    let bytes = r.take(length)?;
    std::str::from_utf8(&bytes).map(str::to_owned).map_err(|_| DecodeError::Invalid("text"))
}

pub(super) fn address(r: &mut Reader) -> Result<Address, DecodeError> {
    Address::parse(&text(r)?).map_err(|_| DecodeError::Invalid("address"))
}

fn code(r: &mut Reader) -> Result<Code, DecodeError> {
    Code::from_number(r.u16()?).ok_or(DecodeError::Invalid("code"))
}

/// A list behind its length; `item_bytes` is the least that one item takes.
pub(super) fn list<T>(
    r: &mut Reader,
    item_bytes: usize,
    item: impl Fn(&mut Reader) -> Result<T, DecodeError>,
) -> Result<Vec<T>, DecodeError> {
    let count = r.u32()? as usize;
    let count = r.count(count, item_bytes, "list")?;
    (0..count).map(|_| item(r)).collect()
}

pub(super) fn put_held(out: &mut BytesMut, held: &[(Offset, Attempt)]) {
    out.put_u32(held.len() as u32);
    for (offset, attempt) in held {
        out.put_u64(offset.0);
        out.put_u32(attempt.0);
    }
}

pub(super) fn held(r: &mut Reader) -> Result<Vec<(Offset, Attempt)>, DecodeError> {
    list(r, 12, |r| Ok((Offset(r.u64()?), Attempt(r.u32()?))))
}

fn put_answer(out: &mut BytesMut, answer: &Answer) {
    match answer {
        Answer::Committed(Outcome::Done) => out.put_u8(1),
        Answer::Committed(Outcome::Count(count)) => {
            out.put_u8(2);
            out.put_u64(*count);
        }
        Answer::Committed(Outcome::Placed(runs)) => {
            out.put_u8(3);
            out.put_u32(runs.len() as u32);
            for run in runs {
                out.put_u32(run.count);
                let (kind, number) = match run.placed {
                    Placed::New(offset) => (0, offset.0),
                    Placed::Seen(None) => (1, 0),
                    Placed::Seen(Some(offset)) => (2, offset.0),
                    Placed::Refused(code) => (3, u64::from(code.number())),
                };
                out.put_u8(kind);
                out.put_u64(number);
            }
        }
        Answer::Committed(Outcome::Refused(code)) => {
            out.put_u8(4);
            out.put_u16(code.number());
        }
        Answer::Refused(code) => {
            out.put_u8(5);
            out.put_u16(code.number());
        }
        Answer::Unknown(code) => {
            out.put_u8(6);
            out.put_u16(code.number());
        }
        Answer::Joined { term, lost } => {
            out.put_u8(7);
            out.put_u64(term.0);
            out.put_u32(lost.len() as u32);
            lost.iter().for_each(|offset| out.put_u64(offset.0));
        }
        Answer::Settled(results) => {
            out.put_u8(8);
            out.put_u32(results.len() as u32);
            for (fate, code) in results {
                out.put_u8(fate.to_u8());
                out.put_u16(code.map_or(0, Code::number));
            }
        }
        Answer::Found(found) => {
            out.put_u8(9);
            put_bytes(out, found);
        }
    }
}

fn answer(r: &mut Reader) -> Result<Answer, DecodeError> {
    Ok(match r.u8()? {
        1 => Answer::Committed(Outcome::Done),
        2 => Answer::Committed(Outcome::Count(r.u64()?)),
        3 => Answer::Committed(Outcome::Placed(list(r, 13, |r| {
            let count = r.u32()?;
            let (kind, number) = (r.u8()?, r.u64()?);
            let placed = match kind {
                0 => Placed::New(Offset(number)),
                1 => Placed::Seen(None),
                2 => Placed::Seen(Some(Offset(number))),
                3 => {
                    let code = u16::try_from(number).ok().and_then(Code::from_number);
                    Placed::Refused(code.ok_or(DecodeError::Invalid("code"))?)
                }
                _ => return Err(DecodeError::Invalid("placed")),
            };
            Ok(PlacedRun { count, placed })
        })?)),
        4 => Answer::Committed(Outcome::Refused(code(r)?)),
        5 => Answer::Refused(code(r)?),
        6 => Answer::Unknown(code(r)?),
        7 => Answer::Joined { term: Term(r.u64()?), lost: list(r, 8, |r| Ok(Offset(r.u64()?)))? },
        8 => Answer::Settled(list(r, 3, |r| {
            let fate = Fate::from_u8(r.u8()?).ok_or(DecodeError::Invalid("outcome"))?;
            Ok((fate, Code::from_number(r.u16()?)))
        })?),
        9 => Answer::Found(bytes(r)?),
        _ => return Err(DecodeError::Invalid("answer")),
    })
}

impl Letter {
    /// Its bytes.
    pub(super) fn to_bytes(&self) -> Bytes {
        let room = if let Self::Consensus(messages) = self { batch_bytes(messages) } else { 64 };
        let mut out = BytesMut::with_capacity(1 + room);
        match self {
            Self::Consensus(messages) => {
                out.put_u8(1);
                encode_batch(messages, &mut out);
            }
            Self::Ask { ticket, shard, question } => {
                out.put_u8(2);
                out.put_u64(*ticket);
                out.put_u32(shard.0);
                question.put(&mut out);
            }
            Self::Answer { ticket, answer } => {
                out.put_u8(3);
                out.put_u64(*ticket);
                put_answer(&mut out, answer);
            }
            Self::Deliver { subscriber, shard, term, parcels } => {
                out.put_u8(4);
                out.put_u64(*subscriber);
                out.put_u32(shard.0);
                out.put_u64(term.0);
                out.put_u32(parcels.len() as u32);
                for parcel in parcels {
                    out.put_u64(parcel.offset.0);
                    out.put_u32(parcel.attempt.0);
                    out.put_u32(parcel.lease_millis);
                    put_text(&mut out, &parcel.reason);
                    put_bytes(&mut out, &parcel.sealed);
                }
            }
            Self::Expired { subscriber, shard, term, items } => {
                out.put_u8(5);
                out.put_u64(*subscriber);
                out.put_u32(shard.0);
                out.put_u64(term.0);
                put_held(&mut out, items);
            }
            Self::Leads(leads) => {
                out.put_u8(6);
                out.put_u32(leads.len() as u32);
                for lead in leads {
                    out.put_u32(lead.shard.0);
                    out.put_u64(lead.term.0);
                    out.put_u64(lead.applied);
                    out.put_u8(lead.is_settled.into());
                    for replicas in [&lead.voters, &lead.learners, &lead.in_sync] {
                        out.put_u32(replicas.len() as u32);
                        replicas.iter().for_each(|replica| out.put_u64(*replica));
                    }
                }
            }
            Self::StateWanted { shard } => {
                out.put_u8(7);
                out.put_u32(shard.0);
            }
            Self::StatePart { shard, part } => {
                out.put_u8(8);
                out.put_u32(shard.0);
                out.put_u64(part.index);
                out.put_u64(part.term);
                out.put_u32(part.part);
                out.put_u32(part.parts);
                put_bytes(&mut out, &part.bytes);
            }
            Self::PayloadsWanted { shard, items } => {
                out.put_u8(9);
                out.put_u32(shard.0);
                out.put_u32(items.len() as u32);
                for (address, offset) in items {
                    put_text(&mut out, address.as_str());
                    out.put_u64(*offset);
                }
            }
            Self::Payloads { shard, items } => {
                out.put_u8(10);
                out.put_u32(shard.0);
                out.put_u32(items.len() as u32);
                for item in items {
                    put_text(&mut out, item.address.as_str());
                    out.put_u64(item.offset);
                    out.put_u8(item.sealed.is_some().into());
                    put_bytes(&mut out, item.sealed.as_deref().unwrap_or_default());
                }
            }
            Self::Broken { destination, next } => {
                out.put_u8(11);
                out.put_u16(destination.0);
                out.put_u16(next.0);
            }
            Self::Health(health) => {
                out.put_u8(12);
                out.put_u8(health.is_below_reserve.into());
                out.put_u8(health.has_stopped.into());
            }
            Self::PartsCame { shard, index, term, come } => {
                out.put_u8(17);
                out.put_u32(shard.0);
                out.put_u64(*index);
                out.put_u64(*term);
                out.put_u32(*come);
            }
            Self::Arrived(bytes) => {
                out.put_u8(16);
                out.put_u64(*bytes);
            }
            Self::Slow(is_slow) => {
                out.put_u8(15);
                out.put_u8((*is_slow).into());
            }
            Self::RoutesWanted { ticket, wanted } => {
                out.put_u8(13);
                out.put_u64(*ticket);
                // No node has the number 0.
                out.put_u16(match wanted {
                    Wanted::Routes => 0,
                    Wanted::Explanation(to) => to.0,
                });
            }
            Self::Routes { ticket, said } => {
                out.put_u8(14);
                out.put_u64(*ticket);
                put_bytes(&mut out, said);
            }
        }
        out.freeze()
    }

    /// From its bytes.
    pub(super) fn read(body: Bytes) -> Result<Self, DecodeError> {
        let mut r = Reader::new(body);
        let kind = r.u8()?;
        if kind == 1 {
            return Ok(Self::Consensus(decode_batch(r.rest())?));
        }
        let r = &mut r;
        let letter = match kind {
            2 => Self::Ask { ticket: r.u64()?, shard: ShardId(r.u32()?), question: Question::read(r)? },
            3 => Self::Answer { ticket: r.u64()?, answer: answer(r)? },
            4 => Self::Deliver {
                subscriber: r.u64()?,
                shard: ShardId(r.u32()?),
                term: Term(r.u64()?),
                parcels: list(r, 22, |r| {
                    Ok(Parcel {
                        offset: Offset(r.u64()?),
                        attempt: Attempt(r.u32()?),
                        lease_millis: r.u32()?,
                        reason: text(r)?,
                        sealed: bytes(r)?,
                    })
                })?,
            },
            5 => {
                let (subscriber, shard, term) = (r.u64()?, ShardId(r.u32()?), Term(r.u64()?));
                Self::Expired { subscriber, shard, term, items: held(r)? }
            }
            6 => Self::Leads(list(r, 33, |r| {
                let (shard, term, applied) = (ShardId(r.u32()?), Term(r.u64()?), r.u64()?);
                let is_settled = r.flag("settled")?;
                let mut replicas = || list(r, 8, Reader::u64);
                Ok(Lead {
                    shard,
                    term,
                    applied,
                    voters: replicas()?,
                    learners: replicas()?,
                    is_settled,
                    in_sync: replicas()?,
                })
            })?),
            7 => Self::StateWanted { shard: ShardId(r.u32()?) },
            8 => Self::StatePart {
                shard: ShardId(r.u32()?),
                part: StatePart {
                    index: r.u64()?,
                    term: r.u64()?,
                    part: r.u32()?,
                    parts: r.u32()?,
                    bytes: bytes(r)?,
                },
            },
            9 => Self::PayloadsWanted {
                shard: ShardId(r.u32()?),
                items: list(r, 10, |r| Ok((address(r)?, r.u64()?)))?,
            },
            10 => Self::Payloads {
                shard: ShardId(r.u32()?),
                items: list(r, 15, |r| {
                    let (address, offset) = (address(r)?, r.u64()?);
                    let is_there = r.flag("payload")?;
                    let sealed = bytes(r)?;
                    Ok(Payload { address, offset, sealed: is_there.then_some(sealed) })
                })?,
            },
            12 => Self::Health(Health {
                is_below_reserve: r.flag("below reserve")?,
                has_stopped: r.flag("stopped")?,
            }),
            15 => Self::Slow(r.flag("slow")?),
            16 => Self::Arrived(r.u64()?),
            17 => {
                Self::PartsCame { shard: ShardId(r.u32()?), index: r.u64()?, term: r.u64()?, come: r.u32()? }
            }
            11 => Self::Broken { destination: NodeId(r.u16()?), next: NodeId(r.u16()?) },
            13 => {
                let (ticket, to) = (r.u64()?, r.u16()?);
                let wanted = if to == 0 { Wanted::Routes } else { Wanted::Explanation(NodeId(to)) };
                Self::RoutesWanted { ticket, wanted }
            }
            14 => Self::Routes { ticket: r.u64()?, said: bytes(r)? },
            _ => return Err(DecodeError::Invalid("letter")),
        };
        r.end()?;
        Ok(letter)
    }
}

#[cfg(test)]
mod tests {
    use swarmmq_protocol::consensus::MessageKind;

    use super::{super::question::examples, *};

    fn answers() -> Vec<Answer> {
        let run = |placed| PlacedRun { count: 1, placed };
        vec![
            Answer::Committed(Outcome::Done),
            Answer::Committed(Outcome::Count(1)),
            Answer::Committed(Outcome::Placed(vec![
                run(Placed::New(Offset(1))),
                run(Placed::Seen(None)),
                run(Placed::Seen(Some(Offset(2)))),
                run(Placed::Refused(Code::Gap)),
            ])),
            Answer::Committed(Outcome::Refused(Code::Limit)),
            Answer::Refused(Code::NotLeader),
            Answer::Unknown(Code::QuorumLost),
            Answer::Joined { term: Term(1), lost: vec![Offset(2)] },
            Answer::Settled(vec![(Fate::Ok, None), (Fate::Failed, Some(Code::LeaseLost))]),
            Answer::Found(Bytes::from_static(b"view")),
        ]
    }

    fn letters() -> Vec<Letter> {
        let (shard, address) = (ShardId(3), Address::parse("a").unwrap());
        let message = Message { kind: MessageKind::Heartbeat, from: 1, to: 2, term: 3, ..Message::default() };
        let parcel = Parcel {
            offset: Offset(1),
            attempt: Attempt(2),
            lease_millis: 3,
            reason: "dead".to_owned(),
            sealed: Bytes::from_static(b"sealed"),
        };
        let lead = Lead {
            shard,
            term: Term(1),
            applied: 2,
            voters: vec![3],
            learners: vec![4, 5],
            is_settled: true,
            in_sync: Vec::new(),
        };
        let part = StatePart { index: 1, term: 2, part: 0, parts: 1, bytes: Bytes::from_static(b"state") };
        let payload = |sealed| Payload { address: address.clone(), offset: 1, sealed };
        let mut letters: Vec<Letter> =
            examples().into_iter().map(|question| Letter::Ask { ticket: 1, shard, question }).collect();
        letters.extend(answers().into_iter().map(|answer| Letter::Answer { ticket: 1, answer }));
        letters.extend([
            Letter::Consensus(vec![(shard, message)]),
            Letter::Deliver { subscriber: 1, shard, term: Term(2), parcels: vec![parcel] },
            Letter::Expired { subscriber: 1, shard, term: Term(2), items: vec![(Offset(1), Attempt(2))] },
            Letter::Arrived(1),
            Letter::PartsCame { shard, index: 1, term: 2, come: 3 },
            Letter::Leads(vec![lead]),
            Letter::StateWanted { shard },
            Letter::StatePart { shard, part },
            Letter::PayloadsWanted { shard, items: vec![(address.clone(), 1)] },
            Letter::Payloads { shard, items: vec![payload(None), payload(Some(Bytes::from_static(b"x")))] },
            Letter::Broken { destination: NodeId(1), next: NodeId(2) },
            Letter::Health(Health { is_below_reserve: true, has_stopped: false }),
            Letter::Slow(true),
            Letter::RoutesWanted { ticket: 1, wanted: Wanted::Routes },
            Letter::RoutesWanted { ticket: 1, wanted: Wanted::Explanation(NodeId(2)) },
            Letter::Routes { ticket: 1, said: Bytes::from_static(b"said") },
        ]);
        letters
    }

    #[test]
    fn every_letter_reads_back_and_none_that_is_cut_does() {
        for letter in letters() {
            let bytes = letter.to_bytes();
            let read = Letter::read(bytes.clone()).unwrap_or_else(|error| panic!("{letter:?}: {error}"));
            assert_eq!(read.to_bytes(), bytes, "{letter:?}");
            for end in 0..bytes.len() {
                assert!(Letter::read(bytes.slice(..end)).is_err(), "{letter:?} cut at {end}");
            }
        }
    }

    #[test]
    fn whatever_bytes_come_nothing_panics_or_grows_beyond_them() {
        let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
        let mut next = || {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed
        };
        let all: Vec<Bytes> = letters().iter().map(Letter::to_bytes).collect();
        let mut read = 0;
        for _ in 0..20_000 {
            let mut bytes = all[next() as usize % all.len()].to_vec();
            for _ in 0..=next() % 4 {
                let at = next() as usize % bytes.len();
                bytes[at] = next() as u8;
            }
            read += usize::from(Letter::read(bytes.into()).is_ok());
        }
        assert!(read > 100, "some flips leave a letter: {read}");
    }

    #[test]
    fn a_list_longer_than_its_bytes_is_refused_before_room_is_made_for_it() {
        let mut bytes = BytesMut::new();
        bytes.put_u8(6);
        bytes.put_u32(u32::MAX);
        bytes.put_slice(&[0; 64]);
        assert_eq!(Letter::read(bytes.freeze()).unwrap_err(), DecodeError::TooLarge("list"));
    }
}
