//! Which way packets take from one node to another, and why, as that node tells an operator.

use bytes::{BufMut, BytesMut};

use crate::{
    codec::{DecodeError, Reader, put_text},
    id::NodeId,
    limits::HOPS_MAX,
};

/// Why a path was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouteWhy {
    /// There was none before.
    Found,
    /// The one before did not lead there any more, or only over a link that is avoided.
    Broken,
    /// It was cheaper by enough for long enough.
    Cheaper {
        /// What the earlier path cost then, in microseconds.
        from_us: u64,
        /// What this one cost then, in microseconds.
        to_us: u64,
    },
    /// There is no path.
    Lost,
}

impl RouteWhy {
    /// Name in JSON.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Found => "found",
            Self::Broken => "broken",
            Self::Cheaper { .. } => "cheaper",
            Self::Lost => "lost",
        }
    }

    fn put(self, out: &mut BytesMut) {
        let (kind, from_us, to_us) = match self {
            Self::Found => (0, 0, 0),
            Self::Broken => (1, 0, 0),
            Self::Cheaper { from_us, to_us } => (2, from_us, to_us),
            Self::Lost => (3, 0, 0),
        };
        out.put_u8(kind);
        out.put_u64(from_us);
        out.put_u64(to_us);
    }

    fn read(reader: &mut Reader) -> Result<Self, DecodeError> {
        match (reader.u8()?, reader.u64()?, reader.u64()?) {
            (0, 0, 0) => Ok(Self::Found),
            (1, 0, 0) => Ok(Self::Broken),
            (2, from_us, to_us) => Ok(Self::Cheaper { from_us, to_us }),
            (3, 0, 0) => Ok(Self::Lost),
            _ => Err(DecodeError::Invalid("why")),
        }
    }
}

/// The path in use from one node to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Its end.
    pub to: NodeId,
    /// With both ends; empty: there is none.
    pub path: Vec<NodeId>,
    /// One way, in microseconds. `None`: there is no path, or it does not lead there now.
    pub cost_us: Option<u64>,
    /// The path before, with both ends; empty: there was none.
    pub before: Vec<NodeId>,
    /// Why the latest change was made.
    pub why: RouteWhy,
    /// How long ago, in milliseconds.
    pub changed_ms: u64,
    /// How often the path has changed since the node started.
    pub changes: u64,
}

impl Route {
    /// Least bytes of one.
    const BYTES_MIN: usize = 45;

    fn put(&self, out: &mut BytesMut) {
        out.put_u16(self.to.0);
        put_path(out, &self.path);
        out.put_u64(self.cost_us.unwrap_or(u64::MAX));
        put_path(out, &self.before);
        self.why.put(out);
        out.put_u64(self.changed_ms);
        out.put_u64(self.changes);
    }

    fn read(reader: &mut Reader) -> Result<Self, DecodeError> {
        Ok(Self {
            to: NodeId(reader.u16()?),
            path: read_path(reader)?,
            cost_us: Some(reader.u64()?).filter(|us| *us != u64::MAX),
            before: read_path(reader)?,
            why: RouteWhy::read(reader)?,
            changed_ms: reader.u64()?,
            changes: reader.u64()?,
        })
    }
}

/// The paths that one node has chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeRoutes {
    /// Whose.
    pub from: NodeId,
    /// To every other node. `None`: that node did not answer.
    pub routes: Option<Vec<Route>>,
}

impl NodeRoutes {
    /// Least bytes of one.
    pub(crate) const BYTES_MIN: usize = 5;

    /// Writes it.
    pub fn put(&self, out: &mut BytesMut) {
        out.put_u16(self.from.0);
        out.put_u8(self.routes.is_some().into());
        let routes = self.routes.as_deref().unwrap_or_default();
        out.put_u16(routes.len() as u16);
        routes.iter().for_each(|route| route.put(out));
    }

    /// Reads it.
    pub fn read(reader: &mut Reader) -> Result<Self, DecodeError> {
        let (from, has_answered) = (NodeId(reader.u16()?), reader.flag("has answered")?);
        let count = usize::from(reader.u16()?);
        if !has_answered && count > 0 {
            return Err(DecodeError::Invalid("routes"));
        }
        let routes = reader.list(count, Route::BYTES_MIN, "routes", Route::read)?;
        Ok(Self { from, routes: has_answered.then_some(routes) })
    }
}

/// Something that is wrong with a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LinkFault {
    /// There is no connection.
    NoConnection,
    /// Nothing comes over it although its other end lives.
    Silent,
    /// Its other end hears nothing over it, by its own word.
    Unheard,
    /// It has failed again and again.
    Suppressed,
    /// A relay could not use it just now.
    Doubted,
    /// The process at its end is gone.
    Gone,
    /// The node at its beginning says that it is down or silent.
    DownByFrom,
    /// The node at its end says that it is down or silent.
    DownByTo,
    /// One of its ends has not said anything about it.
    Unreported,
}

impl LinkFault {
    /// In the order of their bits.
    pub const ALL: [Self; 9] = [
        Self::NoConnection,
        Self::Silent,
        Self::Unheard,
        Self::Suppressed,
        Self::Doubted,
        Self::Gone,
        Self::DownByFrom,
        Self::DownByTo,
        Self::Unreported,
    ];

    /// Name in JSON.
    pub const fn text(self) -> &'static str {
        match self {
            Self::NoConnection => "no_connection",
            Self::Silent => "silent",
            Self::Unheard => "unheard",
            Self::Suppressed => "suppressed",
            Self::Doubted => "doubted",
            Self::Gone => "gone",
            Self::DownByFrom => "down_by_from",
            Self::DownByTo => "down_by_to",
            Self::Unreported => "unreported",
        }
    }

    /// Whether the link is used all the same where nothing else leads on.
    pub const fn only_avoids(self) -> bool {
        matches!(self, Self::Silent | Self::Unheard | Self::Suppressed)
    }
}

/// What is wrong with a link, all of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkFaults(u16);

impl LinkFaults {
    const MASK: u16 = (1 << LinkFault::ALL.len()) - 1;

    /// Adds `fault` if `is_there`.
    pub fn note(&mut self, fault: LinkFault, is_there: bool) {
        self.0 |= u16::from(is_there) << fault as u16;
    }

    /// Each of them.
    pub fn iter(self) -> impl Iterator<Item = LinkFault> {
        LinkFault::ALL.into_iter().filter(move |fault| self.0 >> *fault as u16 & 1 == 1)
    }

    /// Whether the link is not used at all.
    pub fn exclude(self) -> bool {
        self.iter().any(|fault| !fault.only_avoids())
    }

    /// Whether the link is used only where nothing else leads on, or not at all.
    pub fn avoid(self) -> bool {
        self != Self::default()
    }
}

/// What one of a link's ends says of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkWord {
    /// Which end.
    pub by: NodeId,
    /// Round trip, in microseconds.
    pub rtt_us: u32,
    /// What gets lost on the way to it, in 1,000.
    pub loss_permille: u16,
}

/// One direction of a link, as the node that explains sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkView {
    /// Where it begins.
    pub from: NodeId,
    /// Where it ends.
    pub to: NodeId,
    /// One way, in microseconds. `None`: it is not used.
    pub cost_us: Option<u32>,
    /// Half of the round trip that counts: part of the cost.
    pub half_rtt_us: u32,
    /// The surcharge for loss: part of the cost. If the parts are less than the cost, the link is avoided.
    pub loss_us: u32,
    /// What is wrong with it.
    pub faults: LinkFaults,
    /// Whether the node that explains is at its beginning: then its own measurement counts. Otherwise both ends' reports do.
    pub is_own: bool,
    /// Who says what.
    pub words: Vec<LinkWord>,
    /// What it has done wrong lately; 1,000 for each failure, halved every ten seconds. Only of own links.
    pub penalty: u32,
    /// Until its penalty is forgotten enough, or the doubt about it ends, if nothing happens; 0: not known.
    pub until_ms: u32,
}

impl LinkView {
    const BYTES_MIN: usize = 28;

    fn put(&self, out: &mut BytesMut) {
        out.put_u16(self.from.0);
        out.put_u16(self.to.0);
        out.put_u32(self.cost_us.unwrap_or(u32::MAX));
        out.put_u32(self.half_rtt_us);
        out.put_u32(self.loss_us);
        out.put_u16(self.faults.0);
        out.put_u8(self.is_own.into());
        out.put_u8(self.words.len() as u8);
        for word in &self.words {
            out.put_u16(word.by.0);
            out.put_u32(word.rtt_us);
            out.put_u16(word.loss_permille);
        }
        out.put_u32(self.penalty);
        out.put_u32(self.until_ms);
    }

    fn read(reader: &mut Reader) -> Result<Self, DecodeError> {
        let (from, to) = (NodeId(reader.u16()?), NodeId(reader.u16()?));
        let cost_us = Some(reader.u32()?).filter(|us| *us != u32::MAX);
        let (half_rtt_us, loss_us) = (reader.u32()?, reader.u32()?);
        let faults = reader.u16()?;
        if faults & !LinkFaults::MASK != 0 {
            return Err(DecodeError::Invalid("faults"));
        }
        let is_own = reader.flag("own")?;
        let count = usize::from(reader.u8()?);
        let words = reader.list(count, 8, "words", |reader| {
            let by = NodeId(reader.u16()?);
            Ok(LinkWord { by, rtt_us: reader.u32()?, loss_permille: reader.u16()? })
        })?;
        let (penalty, until_ms) = (reader.u32()?, reader.u32()?);
        let faults = LinkFaults(faults);
        Ok(Self { from, to, cost_us, half_rtt_us, loss_us, faults, is_own, words, penalty, until_ms })
    }
}

/// What it costs to pass a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RelayView {
    /// Which.
    pub node: NodeId,
    /// In microseconds. `None`: nothing passes it.
    pub cost_us: Option<u32>,
    /// The part of the cost that every relay has.
    pub surcharge_us: u32,
    /// How late its loop comes to what is due, by its own word: the rest of the cost.
    pub lag_us: u32,
    /// Whether it has the role.
    pub is_router: bool,
    /// How long ago its beat last rose, in milliseconds. `None`: never heard.
    pub heard_ms: Option<u64>,
}

impl RelayView {
    const BYTES: usize = 23;

    fn put(&self, out: &mut BytesMut) {
        out.put_u16(self.node.0);
        out.put_u32(self.cost_us.unwrap_or(u32::MAX));
        out.put_u32(self.surcharge_us);
        out.put_u32(self.lag_us);
        out.put_u8(self.is_router.into());
        out.put_u64(self.heard_ms.unwrap_or(u64::MAX));
    }

    fn read(reader: &mut Reader) -> Result<Self, DecodeError> {
        Ok(Self {
            node: NodeId(reader.u16()?),
            cost_us: Some(reader.u32()?).filter(|us| *us != u32::MAX),
            surcharge_us: reader.u32()?,
            lag_us: reader.u32()?,
            is_router: reader.flag("router")?,
            heard_ms: Some(reader.u64()?).filter(|ms| *ms != u64::MAX),
        })
    }
}

/// A path that could be taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteCandidate {
    /// With both ends.
    pub path: Vec<NodeId>,
    /// What its links cost together, in microseconds.
    pub links_us: u64,
    /// What its relays cost together, in microseconds.
    pub relays_us: u64,
}

impl RouteCandidate {
    /// One way, in microseconds.
    pub fn cost_us(&self) -> u64 {
        self.links_us.saturating_add(self.relays_us)
    }
}

/// Why packets from one node to another take the path that they take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteExplanation {
    /// Where it begins: who explains.
    pub from: NodeId,
    /// What is in use.
    pub route: Route,
    /// Samples in a row in which another path was cheaper by enough...
    pub streak: u8,
    /// ...and so many it takes.
    pub streak_needed: u8,
    /// The most that another path may cost to be cheaper by enough, in microseconds. `None`: none can be.
    pub worth_us: Option<u64>,
    /// The cheapest ones, best first.
    pub candidates: Vec<RouteCandidate>,
    /// The direct link first, then those of the candidates, then others from the beginning and to the end.
    pub links: Vec<LinkView>,
    /// Every other node.
    pub relays: Vec<RelayView>,
    /// What would make the path change next, in words.
    pub next: String,
}

impl RouteExplanation {
    /// Writes it.
    pub fn put(&self, out: &mut BytesMut) {
        out.put_u16(self.from.0);
        self.route.put(out);
        out.put_u8(self.streak);
        out.put_u8(self.streak_needed);
        out.put_u64(self.worth_us.unwrap_or(u64::MAX));
        out.put_u8(self.candidates.len() as u8);
        for candidate in &self.candidates {
            put_path(out, &candidate.path);
            out.put_u64(candidate.links_us);
            out.put_u64(candidate.relays_us);
        }
        out.put_u16(self.links.len() as u16);
        self.links.iter().for_each(|link| link.put(out));
        out.put_u16(self.relays.len() as u16);
        self.relays.iter().for_each(|relay| relay.put(out));
        put_text(out, &self.next);
    }

    /// Reads it.
    pub fn read(reader: &mut Reader) -> Result<Self, DecodeError> {
        let (from, route) = (NodeId(reader.u16()?), Route::read(reader)?);
        let (streak, streak_needed) = (reader.u8()?, reader.u8()?);
        let worth_us = Some(reader.u64()?).filter(|us| *us != u64::MAX);
        let count = usize::from(reader.u8()?);
        let candidates = reader.list(count, 17, "candidates", |reader| {
            let path = read_path(reader)?;
            Ok(RouteCandidate { path, links_us: reader.u64()?, relays_us: reader.u64()? })
        })?;
        let count = usize::from(reader.u16()?);
        let links = reader.list(count, LinkView::BYTES_MIN, "links", LinkView::read)?;
        let count = usize::from(reader.u16()?);
        let relays = reader.list(count, RelayView::BYTES, "relays", RelayView::read)?;
        let next = reader.text("next")?;
        Ok(Self { from, route, streak, streak_needed, worth_us, candidates, links, relays, next })
    }
}

fn put_path(out: &mut BytesMut, path: &[NodeId]) {
    out.put_u8(path.len() as u8);
    path.iter().for_each(|node| out.put_u16(node.0));
}

fn read_path(reader: &mut Reader) -> Result<Vec<NodeId>, DecodeError> {
    let count = usize::from(reader.u8()?);
    if count == 1 || count > HOPS_MAX + 1 {
        return Err(DecodeError::Invalid("path"));
    }
    reader.list(count, 2, "path", |reader| Ok(NodeId(reader.u16()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_that_is_only_avoided_is_still_a_way() {
        let mut faults = LinkFaults::default();
        assert!(!faults.avoid() && !faults.exclude());
        faults.note(LinkFault::Silent, true);
        faults.note(LinkFault::Gone, false);
        assert!(faults.avoid() && !faults.exclude());
        faults.note(LinkFault::Doubted, true);
        assert!(faults.exclude());
        assert_eq!(faults.iter().collect::<Vec<_>>(), [LinkFault::Silent, LinkFault::Doubted]);
    }
}
