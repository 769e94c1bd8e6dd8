//! Which nodes belong to the cluster, as its own shard remembers them, and which of them should hold which shard.
//!
//! Placement is not stored: every leader works out the same wish from the same members, and takes one step at a time
//! towards it. So a wish that changes while it is being fulfilled costs nothing but the steps.

use std::collections::{BTreeMap, BTreeSet};

use swarmmq_protocol::{
    error::Code,
    id::{NodeId, ShardId},
    node_key::NodeKey,
};

use super::{
    codec::{Malformed, Reader, put_text},
    consensus::{Conf, mix},
    state::Outcome,
};

/// Role bit: takes client connections.
pub const ROLE_INGRESS: u8 = 1;
/// Role bit: relays packets.
pub const ROLE_ROUTER: u8 = 2;
/// Role bit: holds replicas.
pub const ROLE_STORE: u8 = 4;
/// Voters of the cluster's own shard, at most.
const CLUSTER_VOTERS_MAX: usize = 5;
/// Nodes of a cluster, at most: what one status answer and one gossip round can tell of.
pub const NODES_MAX: usize = swarmmq_protocol::limits::NODES_MAX;
/// Copies of each shard, unless the cluster was made with another number.
pub const REPLICAS: u8 = 3;

/// What the cluster knows of one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Which life of its disk. An older one can never come back.
    pub incarnation: u64,
    /// What it does.
    pub roles: u8,
    /// Where clients reach it.
    pub client: String,
    /// Where other nodes reach it.
    pub peer: String,
    /// Where datagrams reach it.
    pub gossip: String,
    /// Where its read-only pages are.
    pub admin: String,
    /// Its public keys, for datagrams and what it says of others. `None`: it joined before nodes had any.
    pub key: Option<NodeKey>,
    /// It is being emptied: it keeps no shard that another could hold. Who joins is as emptied as its number was before.
    pub draining: bool,
}

/// Something about the nodes of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodeEvent {
    /// A node belongs to the cluster, for the first time, with another disk or at another place.
    Joined {
        /// Which.
        node: NodeId,
        /// What it said of itself.
        member: Member,
    },
    /// A node is to be emptied, or not any more.
    Drained {
        /// Which.
        node: NodeId,
        /// Whether.
        draining: bool,
    },
    /// A node belongs to the cluster no more.
    Removed {
        /// Which.
        node: NodeId,
    },
    /// How many copies each shard should have.
    Copies {
        /// 1, 3 or 5.
        replicas: u8,
    },
}

impl NodeEvent {
    pub(super) fn put(&self, out: &mut Vec<u8>) {
        match self {
            Self::Joined { node, member } => {
                out.push(if member.key.is_some() { 5 } else { 1 });
                out.extend_from_slice(&node.0.to_be_bytes());
                member.put(out);
                member.key.iter().for_each(|key| out.extend_from_slice(&key.to_bytes()));
            }
            Self::Drained { node, draining } => {
                out.push(2);
                out.extend_from_slice(&node.0.to_be_bytes());
                out.push(u8::from(*draining));
            }
            Self::Removed { node } => {
                out.push(3);
                out.extend_from_slice(&node.0.to_be_bytes());
            }
            Self::Copies { replicas } => out.extend_from_slice(&[4, *replicas]),
        }
    }

    pub(super) fn read(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        match reader.u8()? {
            1 => Ok(Self::Joined { node: NodeId(reader.u16()?), member: Member::read(reader)? }),
            2 => Ok(Self::Drained { node: NodeId(reader.u16()?), draining: reader.u8()? != 0 }),
            3 => Ok(Self::Removed { node: NodeId(reader.u16()?) }),
            4 => Ok(Self::Copies { replicas: reader.u8()? }),
            5 => {
                let node = NodeId(reader.u16()?);
                let member = Member::read(reader)?;
                let key = Some(NodeKey::from_bytes(&reader.array()?));
                Ok(Self::Joined { node, member: Member { key, ..member } })
            }
            _ => Err(Malformed),
        }
    }
}

impl Member {
    fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.incarnation.to_be_bytes());
        out.push(self.roles);
        out.push(u8::from(self.draining));
        for text in [&self.client, &self.peer, &self.gossip, &self.admin] {
            put_text(out, text);
        }
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        let incarnation = reader.u64()?;
        let roles = reader.u8()?;
        let draining = reader.u8()? != 0;
        let mut text = || reader.text().map(str::to_owned);
        Ok(Self {
            incarnation,
            roles,
            draining,
            client: text()?,
            peer: text()?,
            gossip: text()?,
            admin: text()?,
            key: None,
        })
    }

    /// Whether it can hold replicas.
    pub fn is_store(&self) -> bool {
        self.roles & ROLE_STORE != 0
    }
}

/// The name of a node's replica in consensus groups: its number and the life of its disk (safety rule 14).
pub fn replica_of(node: NodeId, incarnation: u64) -> u64 {
    u64::from(node.0) << 48 | incarnation & 0xffff_ffff_ffff
}

/// The node of a replica.
pub fn node_of(replica: u64) -> NodeId {
    NodeId((replica >> 48) as u16)
}

/// All nodes of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Members {
    /// By number.
    pub nodes: BTreeMap<NodeId, Member>,
    /// Disks that belong here no more.
    pub removed: BTreeSet<(NodeId, u64)>,
    /// How many copies each shard should have.
    pub replicas: u8,
}

impl Default for Members {
    fn default() -> Self {
        Self { nodes: BTreeMap::new(), removed: BTreeSet::new(), replicas: REPLICAS }
    }
}

impl Members {
    pub(super) fn apply(&mut self, event: &NodeEvent) -> Outcome {
        match event {
            NodeEvent::Joined { node, member } => {
                if self.removed.contains(&(*node, member.incarnation)) {
                    return Outcome::Refused(Code::Removed);
                }
                if !self.nodes.contains_key(node) && self.nodes.len() >= NODES_MAX {
                    return Outcome::Refused(Code::Limit);
                }
                // Only the operator says whether a node is to be emptied: neither a new disk nor a proposal made before
                // that was known takes it back.
                let draining = self.nodes.get(node).is_some_and(|old| old.draining);
                let old = self.nodes.insert(*node, Member { draining, ..member.clone() });
                if let Some(old) = old.filter(|old| old.incarnation != member.incarnation) {
                    self.removed.insert((*node, old.incarnation));
                }
                Outcome::Done
            }
            NodeEvent::Drained { node, draining } => match self.nodes.get_mut(node) {
                Some(member) => {
                    member.draining = *draining;
                    Outcome::Done
                }
                None => Outcome::Refused(Code::NoSuchNode),
            },
            NodeEvent::Removed { node } => match self.nodes.remove(node) {
                Some(member) => {
                    self.removed.insert((*node, member.incarnation));
                    Outcome::Done
                }
                None => Outcome::Refused(Code::NoSuchNode),
            },
            NodeEvent::Copies { replicas } => {
                self.replicas = *replicas;
                Outcome::Done
            }
        }
    }

    pub(super) fn put(&self, out: &mut Vec<u8>) {
        out.push(self.replicas);
        out.extend_from_slice(&(self.nodes.len() as u16).to_be_bytes());
        for (node, member) in &self.nodes {
            out.extend_from_slice(&node.0.to_be_bytes());
            member.put(out);
            out.push(u8::from(member.key.is_some()));
            member.key.iter().for_each(|key| out.extend_from_slice(&key.to_bytes()));
        }
        out.extend_from_slice(&(self.removed.len() as u32).to_be_bytes());
        for (node, incarnation) in &self.removed {
            out.extend_from_slice(&node.0.to_be_bytes());
            out.extend_from_slice(&incarnation.to_be_bytes());
        }
    }

    /// * `keyed`: whether the bytes say for every member which keys it has.
    pub(super) fn read(reader: &mut Reader<'_>, keyed: bool) -> Result<Self, Malformed> {
        let replicas = reader.u8()?;
        let count = reader.u16()?;
        let mut nodes = BTreeMap::new();
        for _ in 0..count {
            let (node, mut member) = (NodeId(reader.u16()?), Member::read(reader)?);
            if keyed && reader.u8()? != 0 {
                member.key = Some(NodeKey::from_bytes(&reader.array()?));
            }
            nodes.insert(node, member);
        }
        let count = reader.u32()?;
        let removed = (0..count)
            .map(|_| Ok((NodeId(reader.u16()?), reader.u64()?)))
            .collect::<Result<_, Malformed>>()?;
        Ok(Self { nodes, removed, replicas })
    }

    /// Whether somebody could still hold data after `event`.
    pub fn may_go(&self, event: &NodeEvent) -> bool {
        let NodeEvent::Removed { node } = event else { return true };
        let is_store = self.nodes.get(node).is_some_and(Member::is_store);
        !is_store || self.nodes.iter().any(|(other, member)| other != node && member.is_store())
    }

    /// The name of a member's replica.
    pub fn replica(&self, node: NodeId) -> Option<u64> {
        self.nodes.get(&node).map(|member| replica_of(node, member.incarnation))
    }

    /// Who should hold `shard`: the nodes that score highest for it, so that a node that comes or goes moves only the
    /// shards that it takes or leaves. The one wished to lead comes first.
    ///
    /// Source: "A name-based mapping scheme for rendezvous", Thaler and Ravishankar, 1996.
    pub fn wish(&self, shard: ShardId) -> Wish {
        let mut stores: Vec<(NodeId, &Member)> = self
            .nodes
            .iter()
            .filter(|(_, member)| member.is_store())
            .map(|(node, member)| (*node, member))
            .collect();
        let score = |node: NodeId| mix(mix(u64::from(shard.0) + 1) ^ mix(u64::from(node.0) << 32));
        stores.sort_by_key(|(node, member)| (member.draining, std::cmp::Reverse(score(*node))));
        let fit = stores.iter().filter(|(_, member)| !member.draining).count();
        let most = if shard == ShardId::CLUSTER { CLUSTER_VOTERS_MAX } else { usize::from(self.replicas) };
        let count = odd(most.min(fit.max(1))).min(stores.len());
        let name = |(node, member): &(NodeId, &Member)| replica_of(*node, member.incarnation);
        let voters: Vec<u64> = stores.iter().take(count).map(name).collect();
        let learners = if shard == ShardId::CLUSTER {
            // Everybody needs the cluster's facts.
            let all = self.nodes.iter().map(|(node, member)| replica_of(*node, member.incarnation));
            all.filter(|replica| !voters.contains(replica)).collect()
        } else {
            Vec::new()
        };
        Wish { voters, learners }
    }
}

/// The largest odd number up to `count`: an even one survives no more losses than the odd one below.
fn odd(count: usize) -> usize {
    if count.is_multiple_of(2) { count.saturating_sub(1).max(1) } else { count }
}

/// Who should hold a shard.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wish {
    /// Who should vote; the first should lead.
    pub voters: Vec<u64>,
    /// Who should follow.
    pub learners: Vec<u64>,
}

impl Wish {
    /// Whether `conf` is as wished.
    pub fn is_met(&self, conf: &Conf) -> bool {
        let same = |a: &[u64], b: &[u64]| a.len() == b.len() && a.iter().all(|each| b.contains(each));
        same(&self.voters, &conf.voters) && same(&self.learners, &conf.learners)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(incarnation: u64) -> Member {
        Member {
            incarnation,
            roles: ROLE_INGRESS | ROLE_ROUTER | ROLE_STORE,
            client: String::new(),
            peer: String::new(),
            gossip: String::new(),
            admin: String::new(),
            key: Some(NodeKey::from_bytes(&[incarnation as u8; 64])),
            draining: false,
        }
    }

    fn members(count: u16) -> Members {
        let mut members = Members::default();
        for node in 1..=count {
            members.apply(&NodeEvent::Joined { node: NodeId(node), member: member(u64::from(node)) });
        }
        members
    }

    #[test]
    fn fewer_than_three_nodes_hold_one_copy_and_more_hold_three() {
        assert_eq!(members(1).wish(ShardId(0)).voters.len(), 1);
        assert_eq!(members(2).wish(ShardId(0)).voters.len(), 1);
        assert_eq!(members(3).wish(ShardId(0)).voters.len(), 3);
        assert_eq!(members(5).wish(ShardId(0)).voters.len(), 3);
        assert_eq!(members(4).wish(ShardId::CLUSTER).voters.len(), 3);
        let all = members(7).wish(ShardId::CLUSTER);
        assert_eq!((all.voters.len(), all.learners.len()), (5, 2));
    }

    #[test]
    fn a_node_that_comes_moves_only_the_shards_it_takes() {
        let (before, after) = (members(5), members(6));
        let new = after.replica(NodeId(6)).unwrap();
        for shard in (0..64).map(ShardId) {
            let (old, now) = (before.wish(shard).voters, after.wish(shard).voters);
            if now.contains(&new) {
                assert_eq!(now.iter().filter(|replica| !old.contains(replica)).count(), 1);
            } else {
                assert_eq!(old, now);
            }
        }
    }

    #[test]
    fn a_draining_node_is_wished_for_only_where_nobody_else_is_left() {
        let mut four = members(4);
        four.apply(&NodeEvent::Drained { node: NodeId(2), draining: true });
        let drained = four.replica(NodeId(2)).unwrap();
        assert!((0..16).all(|shard| !four.wish(ShardId(shard)).voters.contains(&drained)));
        let mut one = members(1);
        one.apply(&NodeEvent::Drained { node: NodeId(1), draining: true });
        assert_eq!(one.wish(ShardId(0)).voters.len(), 1);
    }

    #[test]
    fn a_node_stays_drained_when_it_joins_with_another_disk_and_not_after_it_was_removed() {
        let mut members = members(4);
        let node = NodeId(2);
        let joins = |incarnation| NodeEvent::Joined { node, member: member(incarnation) };
        members.apply(&NodeEvent::Drained { node, draining: true });
        members.apply(&joins(2));
        assert!(members.nodes[&node].draining, "proposed before the drain was known");
        members.apply(&joins(12));
        assert!(members.nodes[&node].draining, "an empty disk is no new order");
        assert!(!members.wish(ShardId(0)).voters.contains(&replica_of(node, 12)));
        members.apply(&NodeEvent::Drained { node, draining: false });
        members.apply(&joins(22));
        assert!(!members.nodes[&node].draining);
        members.apply(&NodeEvent::Drained { node, draining: true });
        members.apply(&NodeEvent::Removed { node });
        members.apply(&joins(32));
        assert!(!members.nodes[&node].draining, "the number was given to another machine");
    }

    #[test]
    fn a_removed_disk_does_not_come_back_but_the_number_may() {
        let mut members = members(3);
        members.apply(&NodeEvent::Removed { node: NodeId(3) });
        let back = |incarnation| NodeEvent::Joined { node: NodeId(3), member: member(incarnation) };
        assert_eq!(members.apply(&back(3)), Outcome::Refused(Code::Removed));
        assert_eq!(members.apply(&back(4)), Outcome::Done);
        let mut bytes = Vec::new();
        members.put(&mut bytes);
        assert_eq!(Members::read(&mut Reader::new(&bytes), true), Ok(members));
    }
}
