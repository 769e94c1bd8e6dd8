//! How things end for a program that uses the queue.

use std::fmt;

use swarmmq_protocol::{
    error::{Code, Outcome},
    id::NameError,
};
use swarmmq_seal::{OpenError, SealError};

/// Why a call did not do what it should.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// No server answered in time. Nothing changed. Blame: network, address, or the cluster is down.
    Unreachable {
        /// Who was tried.
        servers: String,
        /// What the last attempt said.
        last: String,
    },
    /// The cluster said no. Nothing changed.
    Failed {
        /// For programs.
        code: Code,
        /// For people.
        message: String,
    },
    /// It may have happened or not. Asking again is safe.
    Unknown {
        /// For programs.
        code: Code,
        /// For people.
        message: String,
    },
    /// A name breaks the grammar. Nothing was sent. Blame: caller.
    Name {
        /// What was given.
        given: String,
        /// What is wrong with it.
        error: NameError,
    },
    /// The message cannot be sealed. Nothing was sent. Blame: caller.
    Seal(SealError),
    /// A message cannot be opened: it stays in the queue. Blame: keyring, or somebody altered it.
    Open {
        /// Which message.
        id: String,
        /// What is wrong with it.
        error: OpenError,
    },
    /// The lease is not this consumer's any more: nothing was settled, another consumer has or had the message.
    LeaseLost,
    /// The handle was closed.
    Closed,
}

/// Why a send failed.
pub type SendError = Error;
/// Why a settlement failed.
pub type SettleError = Error;

impl Error {
    /// Name for programs, as in the JSON output.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Unreachable { .. } => "unreachable",
            Self::Failed { code, .. } | Self::Unknown { code, .. } => code.text(),
            Self::Name { .. } => "invalid_name",
            Self::Seal(_) => "too_large",
            Self::Open { .. } => "cannot_open",
            Self::LeaseLost => "lease_lost",
            Self::Closed => "closed",
        }
    }

    /// Whether it definitely did not happen.
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::Unknown { .. } => Outcome::Unknown,
            _ => Outcome::Failed,
        }
    }

    /// Exit code of a command that ends with this error.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Unreachable { .. } => 3,
            Self::Unknown { .. } => 5,
            Self::Name { .. } => 2,
            Self::Seal(_) => 6,
            Self::Open { .. } => 4,
            Self::Failed { code, .. } => match code {
                Code::Unauthenticated | Code::NotAllowed | Code::Forged => 4,
                Code::Limit | Code::TooLarge | Code::BacklogFull | Code::DiskFull | Code::Busy => 6,
                Code::NotLeader | Code::QuorumLost | Code::Draining | Code::Deadline => 3,
                _ => 1,
            },
            Self::LeaseLost | Self::Closed => 1,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable { servers, last } => write!(f, "no server of {servers} can be reached: {last}"),
            Self::Failed { code, message } if message.is_empty() => write!(f, "refused: {code}"),
            Self::Failed { message, .. } => write!(f, "refused: {message}"),
            Self::Unknown { code, .. } => write!(f, "the outcome is unknown ({code}): it may have happened"),
            Self::Name { given, error } => write!(f, "{given:?} is no valid name: {error}"),
            Self::Seal(error) => write!(f, "the message cannot be sealed: {error}"),
            Self::Open { id, error } => write!(f, "message {id} cannot be opened: {error}"),
            Self::LeaseLost => write!(f, "the lease was lost: another consumer has or had this message"),
            Self::Closed => write!(f, "the connection was closed by this program"),
        }
    }
}

impl std::error::Error for Error {}
