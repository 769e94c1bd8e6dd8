//! `group`: who consumes an address, and from where.

use clap::Subcommand;
use serde_json::json;
use swarmmq_client::Error;
use swarmmq_protocol::{
    admin::{AdminAnswer, AdminRequest},
    frame::StartAt,
    id::GroupName,
};

use crate::{
    address::{Group, address, destroy, group_table, unexpected},
    discover::{CONNECT_TIME_MAX, Target},
    output::{Failure, Outcomes, print},
    parse,
};

/// What to do with groups.
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum GroupCommand {
    /// The groups of an address
    Ls {
        /// Of which address
        address: String,
    },
    /// Move a group to another place
    Seek {
        /// Of which address
        address: String,
        /// Which
        group: String,
        /// Where to: start, end, or a time (2026-01-31T12:00:00Z, seconds since 1970, -1h)
        #[arg(long = "to", alias = "from", value_name = "WHERE", allow_hyphen_values = true, value_parser = parse::start)]
        to: StartAt,
        /// Only count
        #[arg(long)]
        dry_run: bool,
    },
    /// Remove a group
    Rm {
        /// Of which address
        address: String,
        /// Which
        group: String,
        /// Only count
        #[arg(long)]
        dry_run: bool,
    },
}

/// A group from the command line.
pub(crate) fn name(text: &str) -> Outcomes<GroupName> {
    GroupName::parse(text).map_err(|error| Failure::from(Error::Name { given: text.to_owned(), error }))
}

/// The command.
pub(crate) async fn run(command: &GroupCommand, target: &Target, as_json: bool) -> Outcomes<u8> {
    match command {
        GroupCommand::Ls { address: of } => {
            let address = address(of)?;
            let client = target.connect(CONNECT_TIME_MAX).await?;
            let answer = client.admin(AdminRequest::GroupList { address: address.clone() }).await?;
            let Some(AdminAnswer::Groups(groups)) = answer else { return Err(unexpected()) };
            if as_json {
                let list: Vec<Group<'_>> = groups.iter().map(Group::from).collect();
                print(&json!({"address": address.as_str(), "groups": list}));
            } else {
                group_table(&groups);
            }
            client.close().await;
        }
        GroupCommand::Seek { address: of, group, to, dry_run } => {
            let (address, group) = (address(of)?, name(group)?);
            let client = target.connect(CONNECT_TIME_MAX).await?;
            let sentence = format!("moving group {group} of {address}: {{}} messages will be before it");
            let what = json!({"address": address.as_str(), "group": group.as_str()});
            let request = |dry_run| AdminRequest::GroupSeek {
                address: address.clone(),
                group: group.clone(),
                start: *to,
                dry_run,
            };
            destroy(&client, as_json, what, &sentence, request, *dry_run).await?;
            client.close().await;
        }
        GroupCommand::Rm { address: of, group, dry_run } => {
            let (address, group) = (address(of)?, name(group)?);
            let client = target.connect(CONNECT_TIME_MAX).await?;
            let sentence = format!("removing group {group} of {address}, for which {{}} messages wait");
            let what = json!({"address": address.as_str(), "group": group.as_str()});
            let request = |dry_run| AdminRequest::GroupRemove {
                address: address.clone(),
                group: group.clone(),
                dry_run,
            };
            destroy(&client, as_json, what, &sentence, request, *dry_run).await?;
            client.close().await;
        }
    }
    Ok(0)
}
