//! What one datagram says: the documents that its receiver lacks, and as much of the digest as has room.

use std::{cmp::Reverse, ops::Bound};

use bytes::Bytes;
use swarmmq_protocol::{
    datagram::{
        DATAGRAM_BODY_BYTES_MAX, DOCUMENT_FRAMING_BYTES, ENTRY_BYTES, Entry, GOSSIP_FIXED_BYTES, Gossiped,
        Header, KIND_GOSSIP, Life,
    },
    id::NodeId,
    time::Instant,
};

use super::{
    correspondent::{Correspondent, Kind, Versions},
    gossip::{Gossip, HOT, Said},
};

/// Wishes in one datagram, at most.
const WISHES_MAX: usize = 16;

impl Gossip {
    /// Own documents and those of others, with version and time of arrival.
    fn documents(&self) -> impl Iterator<Item = (NodeId, Life, Kind, u64, Instant, &Bytes)> {
        let own = std::iter::once((self.me, self.life, &self.own));
        let others =
            self.said.iter().filter_map(|(node, said)| Some((*node, self.detector.life(*node)?, said)));
        own.chain(others).flat_map(|(node, life, said)| {
            let report = said.report.iter().filter(move |(report, _)| report.content().life() == life);
            let report = report.map(move |(report, at)| {
                (node, life, Kind::Report, report.content().version, *at, report.bytes())
            });
            let accusations = said.accusations.iter().filter(move |(said, _)| said.content().life == life);
            report.chain(accusations.map(move |(said, at)| {
                (node, life, Kind::Accusations, said.content().version, *at, said.bytes())
            }))
        })
    }

    /// Whether `to` is known to lack something that is here, or may lack something new.
    pub(super) fn is_wanted(&self, now: Instant, to: NodeId) -> bool {
        let Some(other) = self.others.get(&to) else { return false };
        self.documents().any(|(node, life, kind, version, at, _)| {
            node != to
                && other.wants(now, node, (life.boot, kind, version), node == self.me, now.since(at) < HOT)
        })
    }

    /// Of whom `from` has more than this node.
    pub(super) fn wishes(&self, from: NodeId) -> impl Iterator<Item = NodeId> {
        let shown = self.others.get(&from).into_iter().flat_map(Correspondent::shown);
        shown.filter_map(|(node, theirs)| {
            let life = self.detector.life(node)?;
            let mine = self.said.get(&node)?.versions(life);
            let has_more = theirs.boot > life.boot
                || (theirs.boot == life.boot
                    && (theirs.report > mine.report || theirs.accusations > mine.accusations));
            has_more.then_some(node)
        })
    }

    /// What to tell `to`: the documents that it lacks, the newest first, and as much of the digest as has room.
    ///
    /// * `is_answer`: its digest just came. Else, among many, half of the room is for the digest, so that the answer is to the point; only
    ///   this node's own words go before.
    pub(super) fn compose(
        &mut self,
        now: Instant,
        to: NodeId,
        is_answer: bool,
    ) -> Option<(Header, Gossiped)> {
        let other = self.others.get(&to)?;
        let mut room = DATAGRAM_BODY_BYTES_MAX - GOSSIP_FIXED_BYTES;
        let all = ENTRY_BYTES * (self.others.len() + 1);
        let mut body = Gossiped { loss_permille: other.loss_permille(), ..Gossiped::default() };
        (body.echo, body.held_us) = other.echo(now);

        let mut wanted: Vec<_> = self
            .documents()
            .filter(|(node, life, kind, version, at, _)| {
                *node != to
                    && other.wants(
                        now,
                        *node,
                        (life.boot, *kind, *version),
                        *node == self.me,
                        now.since(*at) < HOT,
                    )
            })
            .map(|(node, life, kind, version, at, bytes)| (at, node, life, kind, version, bytes.clone()))
            .collect();
        wanted.sort_by_key(|(at, node, ..)| (Reverse(*at), *node));
        let reserve = all.min(room / 2);
        let mut given = Vec::new();
        for (_, node, life, kind, version, bytes) in wanted {
            let size = DOCUMENT_FRAMING_BYTES + bytes.len();
            // One always has room beside this node's own entry and the receiver's.
            let goes_before = given.is_empty() && (is_answer || node == self.me || !self.fans_out());
            let least = if goes_before { 2 * ENTRY_BYTES } else { reserve };
            if size + least > room {
                continue;
            }
            room -= size;
            given.push((node, life.boot, kind, version));
            match kind {
                Kind::Report => body.reports.push(bytes),
                Kind::Accusations => body.accusations.push(bytes),
            }
        }
        let left = (room - 2 * ENTRY_BYTES) / 2;
        body.wishes = self.wishes(to).take(left.min(WISHES_MAX)).collect();
        room -= 2 * body.wishes.len();
        self.digest(now, to, room / ENTRY_BYTES, &mut body.entries);

        let to_life = self.detector.life(to)?;
        let other = self.others.get_mut(&to)?;
        given.into_iter().for_each(|(node, boot, kind, version)| other.gave(now, node, boot, kind, version));
        let header = Header {
            kind: KIND_GOSSIP,
            origin: self.me,
            destination: to,
            life: self.life,
            to: to_life,
            counter: other.count(now),
        };
        Some((header, body))
    }

    /// Everybody where there is room; else this node, the receiver, what changed lately, and then whose turn it is.
    fn digest(&mut self, now: Instant, to: NodeId, room: usize, entries: &mut Vec<Entry>) {
        entries.push(self.entry(self.me));
        if room > self.others.len() {
            entries.extend(self.others.keys().map(|node| self.entry(*node)));
            return;
        }
        entries.push(self.entry(to));
        let is_hot = |said: &Said| {
            let report = said.report.iter().any(|(_, at)| now.since(*at) < HOT);
            report || said.accusations.iter().any(|(_, at)| now.since(*at) < HOT)
        };
        let hot = self.said.iter().filter(|(node, said)| **node != to && is_hot(said)).map(|(node, _)| *node);
        let mut chosen: Vec<NodeId> = hot.take(room / 3).collect();
        let after = self.others.range((Bound::Excluded(self.cursor), Bound::Unbounded));
        let turn = after.chain(self.others.range(..=self.cursor)).map(|(node, _)| *node);
        let left = room.saturating_sub(entries.len() + chosen.len());
        let turn: Vec<NodeId> =
            turn.filter(|node| *node != to && !chosen.contains(node)).take(left).collect();
        if let Some(last) = turn.last() {
            self.cursor = *last;
        }
        chosen.extend(turn);
        entries.extend(chosen.into_iter().map(|node| self.entry(node)));
    }

    fn entry(&self, node: NodeId) -> Entry {
        let (life, beat, said) = if node == self.me {
            (self.life, self.beat(), Some(&self.own))
        } else {
            let life = self.detector.life(node).unwrap_or_default();
            (life, self.detector.beat(node), self.said.get(&node))
        };
        let versions = said.map(|said| said.versions(life)).unwrap_or_default();
        let Versions { report, accusations, .. } = versions;
        Entry { node, life, beat, report, accusations }
    }
}
