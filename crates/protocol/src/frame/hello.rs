//! The first frames of a connection: who is there, and proof of it.

use bytes::{BufMut, BytesMut};

use super::MAGIC;
use crate::{
    codec::{DecodeError, Reader, put_name, put_text},
    id::{ClusterId, NodeId},
    time::WallTime,
};

/// First word of a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientHello {
    /// Lowest version it speaks.
    pub version_min: u16,
    /// Highest version it speaks.
    pub version_max: u16,
    /// How it will prove itself: 1, the shared token.
    pub auth: u8,
    /// Who it says it is.
    pub principal: String,
    /// Fresh randomness.
    pub nonce: [u8; 32],
}

impl ClientHello {
    pub(super) fn put(&self, out: &mut BytesMut) {
        out.put_slice(&MAGIC);
        out.put_u16(self.version_min);
        out.put_u16(self.version_max);
        out.put_u8(self.auth);
        put_name(out, &self.principal);
        out.put_slice(&self.nonce);
    }

    pub(super) fn read(reader: &mut Reader) -> Result<Self, DecodeError> {
        if reader.array::<4>()? != MAGIC {
            return Err(DecodeError::Invalid("magic"));
        }
        Ok(Self {
            version_min: reader.u16()?,
            version_max: reader.u16()?,
            auth: reader.u8()?,
            principal: reader.name("principal")?,
            nonce: reader.array()?,
        })
    }
}

/// First word of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerHello {
    /// Version chosen.
    pub version: u16,
    /// Which cluster.
    pub cluster: ClusterId,
    /// Which node.
    pub node: NodeId,
    /// Fresh randomness.
    pub nonce: [u8; 32],
}

impl ServerHello {
    pub(super) fn put(&self, out: &mut BytesMut) {
        out.put_u16(self.version);
        out.put_u128(self.cluster.0);
        out.put_u16(self.node.0);
        out.put_slice(&self.nonce);
    }

    pub(super) fn read(reader: &mut Reader) -> Result<Self, DecodeError> {
        Ok(Self {
            version: reader.u16()?,
            cluster: ClusterId(reader.u128()?),
            node: NodeId(reader.u16()?),
            nonce: reader.array()?,
        })
    }
}

/// The client's proof.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientProof {
    /// HMAC over both hellos.
    pub proof: [u8; 32],
}

impl ClientProof {
    pub(super) fn put(&self, out: &mut BytesMut) {
        out.put_slice(&self.proof);
    }

    pub(super) fn read(reader: &mut Reader) -> Result<Self, DecodeError> {
        Ok(Self { proof: reader.array()? })
    }
}

/// The node's proof and what it allows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Welcome {
    /// HMAC over both hellos.
    pub proof: [u8; 32],
    /// Data shards of the cluster.
    pub shard_count: u32,
    /// Unanswered messages allowed on this connection.
    pub publish_window_messages: u32,
    /// Unanswered sealed bytes allowed on this connection.
    pub publish_window_bytes: u64,
    /// The node's wall clock.
    pub server_time: WallTime,
}

impl Welcome {
    pub(super) fn put(&self, out: &mut BytesMut) {
        out.put_slice(&self.proof);
        out.put_u32(self.shard_count);
        out.put_u32(self.publish_window_messages);
        out.put_u64(self.publish_window_bytes);
        out.put_u64(self.server_time.0);
    }

    pub(super) fn read(reader: &mut Reader) -> Result<Self, DecodeError> {
        Ok(Self {
            proof: reader.array()?,
            shard_count: reader.u32()?,
            publish_window_messages: reader.u32()?,
            publish_window_bytes: reader.u64()?,
            server_time: WallTime(reader.u64()?),
        })
    }
}

/// The connection ends here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Why, for programs.
    pub code: u16,
    /// Why, for people.
    pub message: String,
}

impl Refused {
    pub(super) fn put(&self, out: &mut BytesMut) {
        out.put_u16(self.code);
        put_text(out, &self.message);
    }

    pub(super) fn read(reader: &mut Reader) -> Result<Self, DecodeError> {
        Ok(Self { code: reader.u16()?, message: reader.text("message")? })
    }
}
