//! Who leads which shard, and where clients reach it. A hint: every node takes every frame.

use bytes::{BufMut, BytesMut};

use crate::{
    codec::{DecodeError, Reader, put_name},
    id::NodeId,
    limits::NODES_MAX,
    policy::{Cohort, Policy, Routing},
};

/// Who leads what, as far as a node knows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Leaders {
    /// The nodes that take clients, and where.
    pub nodes: Vec<(NodeId, String)>,
    /// Who leads each data shard, in order; `None`: not known.
    pub shards: Vec<Option<NodeId>>,
    /// How messages are spread that any shard may take. What a later version names in its place counts as the default.
    pub routing: Routing,
}

impl Leaders {
    pub(super) fn put(&self, out: &mut BytesMut) {
        let nodes = &self.nodes[..self.nodes.len().min(NODES_MAX)];
        out.put_u16(nodes.len() as u16);
        for (node, client) in nodes {
            out.put_u16(node.0);
            put_name(out, client);
        }
        out.put_u32(self.shards.len() as u32);
        self.shards.iter().for_each(|leader| out.put_u16(leader.map_or(0, |node| node.0)));
        let Routing { policy, cohort } = self.routing;
        out.put_u8(policy.number());
        out.put_u8(cohort.map_or(0, |cohort| cohort.policy.number()));
        out.put_u16(cohort.map_or(0, |cohort| cohort.permille));
    }

    pub(super) fn read(reader: &mut Reader) -> Result<Self, DecodeError> {
        let count = usize::from(reader.u16()?);
        if count > NODES_MAX {
            return Err(DecodeError::TooLarge("nodes"));
        }
        let nodes =
            reader.list(count, 3, "nodes", |reader| Ok((NodeId(reader.u16()?), reader.name("client")?)))?;
        let count = reader.u32()? as usize;
        let shards = reader
            .list(count, 2, "shards", |reader| Ok(Some(NodeId(reader.u16()?)).filter(|node| node.0 > 0)))?;
        let policy = Policy::from_number(reader.u8()?).unwrap_or_default();
        let of_cohort = Policy::from_number(reader.u8()?);
        let permille = reader.u16()?.min(1000);
        let cohort = of_cohort.map(|policy| Cohort { policy, permille });
        Ok(Self { nodes, shards, routing: Routing { policy, cohort } })
    }
}
