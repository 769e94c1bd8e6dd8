//! How a request can end, and why not well.

use std::fmt;

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Done, durably.
    Ok,
    /// Definitely not done, and it never will be through this copy of the request.
    Failed,
    /// Perhaps done. Retrying the same bytes is safe.
    Unknown,
}

impl Outcome {
    /// Number on the wire.
    pub const fn to_u8(self) -> u8 {
        self as u8
    }

    /// From its number on the wire.
    pub const fn from_u8(number: u8) -> Option<Self> {
        match number {
            0 => Some(Self::Ok),
            1 => Some(Self::Failed),
            2 => Some(Self::Unknown),
            _ => None,
        }
    }
}

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $number:literal, $text:literal;)*) => {
        /// Why a request did not succeed. Numbers are never reused.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u16)]
        pub enum Code {
            $($(#[$doc])* $name = $number,)*
        }

        impl Code {
            /// Every code, in order.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// Name in JSON output and documentation.
            pub const fn text(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// From its number on the wire.
            pub const fn from_number(number: u16) -> Option<Self> {
                match number { $($number => Some(Self::$name),)* _ => None }
            }
        }
    };
}

codes! {
    /// The peer did not prove that it knows the access token.
    Unauthenticated = 1, "unauthenticated";
    /// No protocol version in common.
    Version = 2, "version";
    /// The bytes break the protocol.
    Malformed = 3, "malformed";
    /// Above a size limit.
    TooLarge = 4, "too_large";
    /// The admission MAC does not match.
    Forged = 5, "forged";
    /// The message does not belong into this shard.
    WrongShard = 6, "wrong_shard";
    /// This node does not lead the shard now.
    NotLeader = 7, "not_leader";
    /// The producer has no open session in this shard.
    NotOpen = 8, "not_open";
    /// An earlier sequence is missing.
    Gap = 9, "gap";
    /// A later epoch of the producer exists.
    Fenced = 10, "fenced";
    /// The session is too old, or its epoch is not above the known one.
    StaleSession = 11, "stale_session";
    /// A bound of the system is reached.
    Limit = 12, "limit";
    /// The backlog of the address is at its bound.
    BacklogFull = 13, "backlog_full";
    /// The disk is below its reserve.
    DiskFull = 14, "disk_full";
    /// The address does not exist.
    NoSuchAddress = 15, "no_such_address";
    /// The group does not exist.
    NoSuchGroup = 16, "no_such_group";
    /// The address exists with another order.
    OrderConflict = 17, "order_conflict";
    /// The lease is not the consumer's any more.
    LeaseLost = 18, "lease_lost";
    /// The deadline passed.
    Deadline = 19, "deadline";
    /// The node is stopping.
    Draining = 20, "draining";
    /// The node's log stopped after a disk error.
    LogStopped = 21, "log_stopped";
    /// Too few replicas can be reached.
    QuorumLost = 22, "quorum_lost";
    /// Not allowed for this principal or this address.
    NotAllowed = 23, "not_allowed";
    /// It exists already.
    Exists = 24, "exists";
    /// The frame is not allowed in this state.
    State = 25, "state";
    /// More is under way than was agreed.
    Busy = 26, "busy";
    /// Bytes on disk are damaged.
    Corrupt = 27, "corrupt";
    /// The other node belongs to another cluster.
    WrongCluster = 28, "wrong_cluster";
    /// The node was removed from the cluster.
    Removed = 29, "removed";
    /// Two nodes with one number, or another node than the one that was dialled.
    NodeConflict = 30, "node_conflict";
    /// The cluster has no node of this number.
    NoSuchNode = 31, "no_such_node";
    /// A quota of the principal is reached.
    Quota = 32, "quota";
    /// The cluster has no principal of this name.
    NoSuchPrincipal = 33, "no_such_principal";
    /// Too many failed attempts came from the same place.
    Throttled = 34, "throttled";
    /// A node that is no member brought no join token.
    JoinRequired = 35, "join_required";
    /// The join token was used before, or never issued.
    JoinUnknown = 36, "join_unknown";
    /// The join token is too old.
    JoinExpired = 37, "join_expired";
    /// The join token is for a node of another number.
    JoinOtherNode = 38, "join_other_node";
}

impl Code {
    /// Number on the wire.
    pub const fn number(self) -> u16 {
        self as u16
    }

    /// Whether the same request may succeed later without being changed.
    pub const fn is_transient(self) -> bool {
        matches!(
            self,
            Self::NotLeader
                | Self::NotOpen
                | Self::Gap
                | Self::BacklogFull
                | Self::DiskFull
                | Self::Draining
                | Self::QuorumLost
                | Self::Busy
                | Self::LogStopped
                | Self::Throttled
        )
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_keep_their_numbers() {
        for code in Code::ALL {
            assert_eq!(Code::from_number(code.number()), Some(*code));
        }
        assert_eq!(Code::from_number(0), None);
        assert_eq!(Code::JoinOtherNode.number(), 38);
        assert_eq!(Code::from_number(39), None);
    }
}
