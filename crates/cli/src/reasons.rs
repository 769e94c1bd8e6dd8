//! Why the library or the cluster said no: what that means to a person, and what to do next.

use swarmmq_client::Error;
use swarmmq_protocol::{
    error::{Code, Outcome},
    id::NameError,
};

use crate::output::Failure;

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self {
            exit: error.exit_code(),
            code: error.code(),
            unknown: error.outcome() == Outcome::Unknown,
            message: message(&error),
            hint: hint(&error),
        }
    }
}

/// The library's sentence, unless it is no more than the name of a code.
fn message(error: &Error) -> String {
    match error {
        Error::Failed { code, message } if message.is_empty() => {
            meaning(*code).map_or_else(|| error.to_string(), |meaning| format!("refused: {meaning}"))
        }
        _ => error.to_string(),
    }
}

/// What a code means where no message came with it.
fn meaning(code: Code) -> Option<&'static str> {
    Some(match code {
        Code::Forged => {
            "the node takes this for a forgery: the keyring's admission key is not this cluster's (forged)"
        }
        Code::NotAllowed => "this principal may not do that, or this address takes no messages (not_allowed)",
        Code::Quota => "a quota of this principal is reached (quota)",
        Code::NoSuchPrincipal => "there is no such principal (no_such_principal)",
        Code::DiskFull => "the node's disk is below its reserve (disk_full)",
        Code::BacklogFull => "the address holds as many waiting messages as it may (backlog_full)",
        Code::Limit => "a bound of the cluster is reached (limit)",
        Code::StaleSession => "this machine's clock is days behind the node's (stale_session)",
        Code::LogStopped => "the node's log stopped after a disk error (log_stopped)",
        Code::NotLeader => "the node is still starting (not_leader)",
        Code::Draining => "the node is stopping (draining)",
        Code::Corrupt => "the message is damaged on the node's disk (corrupt)",
        Code::NoSuchAddress => "there is no such address (no_such_address)",
        Code::NoSuchGroup => "there is no such group (no_such_group)",
        Code::NoSuchNode => "the cluster has no such node (no_such_node)",
        _ => return None,
    })
}

fn hint(error: &Error) -> String {
    match error {
        Error::Unreachable { .. } => {
            "start the cluster (`swarmmq dev up` for a local one, `swarmmq node` for others), or correct --servers"
        }
        Error::Untrusted { error, .. } => error.hint(),
        Error::Trust(_) => {
            "`swarmmq keys trust --keyring FILE --ca ca.pem` adds the cluster's authority; for tests on loopback, `insecure_plaintext = true` in the keyring"
        }
        Error::Failed { code, .. } => next_step(*code),
        Error::Unknown { .. } => {
            "it may have happened: look before doing it again (`swarmmq recv --peek`, `address info`, `status`)"
        }
        Error::Name { error: NameError::Reserved, .. } => "use a name that does not begin with _",
        Error::Name { .. } => {
            "an address is segments of A-Z a-z 0-9 _ - joined by dots, e.g. shop.orders; a group is one segment"
        }
        Error::Seal(_) => "make it smaller: body and headers 1 MiB, headers 32 and 8 KiB, key 256 bytes",
        Error::Open { .. } => {
            "use the keyring that it was sealed with; it stays for whoever has that key, in the queue or in ADDRESS.dlq"
        }
        Error::Keyring { .. } => "see `swarmmq keys ls`, and use this cluster's own client.keyring",
        Error::LeaseLost => "nothing is lost: another consumer has or had it",
        Error::Closed => "run it again",
    }
    .to_owned()
}

fn next_step(code: Code) -> &'static str {
    match code {
        Code::Unauthenticated | Code::Forged => {
            "use this cluster's own client.keyring, with --keyring or SWARMMQ_KEYRING"
        }
        Code::NotAllowed => {
            "ask who administrates the cluster (`swarmmq access show NAME`); dead-letter queues can only be received from"
        }
        Code::Quota => "use less, or ask for more: `swarmmq access quota NAME QUOTA=NUMBER`",
        Code::NoSuchPrincipal => "see `swarmmq access ls`",
        Code::Throttled => "wait a minute, and use the right keyring",
        Code::DiskFull => "free space on the node's disk or let consumers catch up; `swarmmq status` tells",
        Code::BacklogFull => {
            "let consumers catch up, or raise the bound with `swarmmq address set ADDRESS --backlog-bytes`"
        }
        Code::TooLarge => "make it smaller",
        Code::Limit | Code::Busy => {
            "remove what is not needed, or wait: docs/operating/README.md lists the bounds"
        }
        Code::NoSuchAddress => "see `swarmmq address ls`; an address appears when it is first used",
        Code::NoSuchGroup => "see `swarmmq group ls ADDRESS`",
        Code::NoSuchNode => "see `swarmmq status`: it lists the nodes of the cluster",
        Code::OrderConflict => "leave --order out, or use another address: an order is fixed at first use",
        Code::Exists => "leave --from out, or move the group with `swarmmq group seek`",
        Code::StaleSession => "set the clocks of both machines right",
        Code::LogStopped | Code::Corrupt => "read the node's log; docs/operating/README.md says what to do",
        Code::NotLeader | Code::QuorumLost | Code::Draining | Code::Deadline => {
            "wait a moment and run it again; `swarmmq status` tells how the cluster is"
        }
        Code::Version | Code::Malformed => "use the same version of swarmmq on both sides",
        _ => "see `swarmmq status`, and docs/operating/README.md",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exit_code_of_a_failure_is_that_of_the_library() {
        let failure: Failure = Error::Unreachable { servers: "a:1".into(), last: "refused".into() }.into();
        assert_eq!((failure.exit, failure.code, failure.unknown), (3, "unreachable", false));
        let failure: Failure = Error::Unknown { code: Code::Deadline, message: String::new() }.into();
        assert_eq!((failure.exit, failure.code, failure.unknown), (5, "deadline", true));
    }

    #[test]
    fn a_bare_code_becomes_a_sentence_and_a_sentence_stays() {
        let failed = |message: &str| {
            Failure::from(Error::Failed { code: Code::DiskFull, message: message.into() }).message
        };
        assert_eq!(failed(""), "refused: the node's disk is below its reserve (disk_full)");
        assert_eq!(failed("no room"), "refused: no room");
    }

    #[test]
    fn every_refusal_says_what_to_do() {
        for code in Code::ALL {
            let failure = Failure::from(Error::Failed { code: *code, message: String::new() });
            assert!(!failure.hint.is_empty() && failure.message.contains(code.text()), "{failure:?}");
        }
    }
}
