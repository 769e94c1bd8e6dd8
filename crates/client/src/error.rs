//! How things end for a program that uses the queue.

use std::fmt;

use swarmmq_protocol::{
    error::{Code, Outcome},
    id::NameError,
};
use swarmmq_seal::{OpenError, SealError};
use swarmmq_tls::TlsError;

/// Why a call did not do what it should. [`Error::outcome`] tells whether it may have happened all the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// No server answered in time. Nothing changed. Blame: network, address, or the cluster is down.
    Unreachable {
        /// Who was tried.
        servers: String,
        /// What the last attempt said.
        last: String,
    },
    /// A server is not a node of the cluster that the keyring is for, or its certificate cannot prove it, or it speaks no TLS.
    /// Nothing was sent. Blame: certificates, the keyring, or whoever poses as a node.
    Untrusted {
        /// Who was tried last.
        server: String,
        /// Why it is not believed.
        error: TlsError,
    },
    /// The keyring does not say how nodes are known, or what it says cannot be used. Nothing was tried. Blame: configuration.
    Trust(String),
    /// The cluster said no, or the deadline passed before anything was sent that could change something. Nothing changed and
    /// nothing will. Blame: the code tells; with `deadline` the cluster, or the way to it.
    Failed {
        /// For programs.
        code: Code,
        /// For people; empty if the code says it all.
        message: String,
    },
    /// It may have happened or not: what was sent was not answered. Blame: the cluster, or the way to it.
    ///
    /// A settlement is repeated by itself while its consumer lives. A message sent anew is a new message: look before
    /// sending it again, or make its receiver recognise it. Of the administrative questions, those that look or make
    /// can be repeated safely; those that remove may remove more.
    Unknown {
        /// For programs.
        code: Code,
        /// For people; empty if the code says it all.
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
    /// The keyring's file, or another keyring, cannot be used. Nothing changed: the keys from before go on. Blame:
    /// configuration.
    Keyring {
        /// What is wrong with it, for people; never a part of a key.
        message: String,
    },
    /// A message cannot be opened. From [`Consumer::next`](crate::Consumer::next): it is settled as
    /// [`SubscribeOptions::unopened`](crate::SubscribeOptions::unopened) says. From
    /// [`SwarmMq::peek`](crate::SwarmMq::peek): nothing changed. Blame: keyring, or somebody altered it.
    Open {
        /// Which message, as [`MessageId`](crate::MessageId) prints.
        id: String,
        /// What is wrong with it.
        error: OpenError,
    },
    /// The lease is not this consumer's any more: nothing was settled, another consumer has or had the message. Blame:
    /// whoever took longer than the lease lasts, or closed the consumer first.
    LeaseLost,
    /// The client was closed, or its handle. Nothing was sent. Blame: caller.
    Closed,
}

/// Why a send failed.
pub type SendError = Error;
/// Why a settlement failed.
pub type SettleError = Error;

impl Error {
    /// The driver vanished with a question in its hands: only the end of the whole runtime does that.
    pub(crate) fn cut_off() -> Self {
        Self::Unknown { code: Code::Deadline, message: "the client ended before the answer".into() }
    }

    /// Name for programs, as in the JSON output.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Unreachable { .. } => "unreachable",
            Self::Untrusted { .. } => "untrusted",
            Self::Trust(_) => "no_trust",
            Self::Failed { code, .. } | Self::Unknown { code, .. } => code.text(),
            Self::Name { .. } => "invalid_name",
            Self::Seal(_) => "too_large",
            Self::Keyring { .. } => "keyring",
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
            Self::Name { .. } | Self::Trust(_) => 2,
            Self::Untrusted { .. } => 4,
            Self::Seal(_) => 6,
            Self::Open { .. } => 4,
            Self::Keyring { .. } => 7,
            Self::Failed { code, .. } => match code {
                Code::Unauthenticated | Code::NotAllowed | Code::Forged | Code::Throttled => 4,
                Code::Limit
                | Code::Quota
                | Code::TooLarge
                | Code::BacklogFull
                | Code::DiskFull
                | Code::Busy => 6,
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
            Self::Untrusted { server, error } => write!(f, "{server} is not trusted: {error}"),
            Self::Trust(why) => write!(f, "the keyring does not say how this node is known: {why}"),
            Self::Failed { code: Code::Deadline, message } if !message.is_empty() => f.write_str(message),
            Self::Failed { code, message } if message.is_empty() => write!(f, "refused: {code}"),
            Self::Failed { message, .. } => write!(f, "refused: {message}"),
            Self::Unknown { code, message } if message.is_empty() => {
                write!(f, "the outcome is unknown ({code}): it may have happened")
            }
            Self::Unknown { code, message } => {
                write!(f, "the outcome is unknown ({code}): {message}; it may have happened")
            }
            Self::Name { given, error } => write!(f, "{given:?} is no valid name: {error}"),
            Self::Seal(error) => write!(f, "the message cannot be sealed: {error}"),
            Self::Keyring { message } => write!(f, "the keyring cannot be used: {message}"),
            Self::Open { id, error } => write!(f, "message {id} cannot be opened: {error}"),
            Self::LeaseLost => write!(f, "the lease was lost: another consumer has or had this message"),
            Self::Closed => write!(f, "the connection was closed by this program"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Name { error, .. } => Some(error),
            Self::Seal(error) => Some(error),
            Self::Open { error, .. } => Some(error),
            Self::Untrusted { error, .. } => Some(error),
            Self::Unreachable { .. }
            | Self::Keyring { .. }
            | Self::Trust(_)
            | Self::Failed { .. }
            | Self::Unknown { .. }
            | Self::LeaseLost
            | Self::Closed => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(code: Code) -> Error {
        Error::Failed { code, message: String::new() }
    }

    #[test]
    fn only_unknown_may_have_happened() {
        let unknown = Error::Unknown { code: Code::Deadline, message: String::new() };
        assert_eq!(unknown.outcome(), Outcome::Unknown);
        assert_eq!(Error::cut_off().outcome(), Outcome::Unknown);
        for certain in [failed(Code::Deadline), Error::LeaseLost, Error::Closed] {
            assert_eq!(certain.outcome(), Outcome::Failed, "{certain}");
        }
    }

    #[test]
    fn exit_codes_are_those_of_the_commands() {
        let unknown = Error::Unknown { code: Code::Draining, message: String::new() };
        for (error, exit) in [
            (unknown, 5),
            (failed(Code::NotAllowed), 4),
            (failed(Code::DiskFull), 6),
            (failed(Code::Deadline), 3),
            (failed(Code::NoSuchGroup), 1),
            (Error::LeaseLost, 1),
            (Error::Trust("nothing".into()), 2),
            (Error::Untrusted { server: "a:1".into(), error: TlsError::UnknownAuthority }, 4),
        ] {
            assert_eq!(error.exit_code(), exit, "{error}");
        }
    }

    #[test]
    fn a_message_for_people_says_what_happened_and_whether_anything_changed() {
        let unknown = Error::Unknown { code: Code::Deadline, message: "the connection broke".into() };
        assert_eq!(
            unknown.to_string(),
            "the outcome is unknown (deadline): the connection broke; it may have happened"
        );
        assert_eq!(failed(Code::DiskFull).to_string(), "refused: disk_full");
        let late = Error::Failed { code: Code::Deadline, message: "nothing was sent".into() };
        assert_eq!(late.to_string(), "nothing was sent");
    }
}
