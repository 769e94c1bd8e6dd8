//! `address`: what exists, and what is remembered about it.

use std::time::Duration;

use clap::{Args, Subcommand};
use serde::Serialize;
use serde_json::json;
use swarmmq_client::SwarmMq;
use swarmmq_protocol::{
    admin::{AddressInfo, AdminAnswer, AdminRequest, GroupInfo, Order, Settings},
    id::Address,
    limits::LEASE_TOTAL_MAX,
};

use crate::{
    discover::{CONNECT_TIME_MAX, Target},
    output::{Failure, Outcomes, print, say, table},
    parse,
};

/// What to do with addresses.
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum AddressCommand {
    /// Make an address, or find it made with the same order
    Create {
        /// Its name, e.g. shop.orders
        address: String,
        /// What consumers may rely on, for ever: total, key or none
        #[arg(long, default_value = "total", value_parser = parse::order)]
        order: Order,
        #[command(flatten)]
        settings: SettingArgs,
    },
    /// Every address
    Ls,
    /// Shards, groups and settings of an address
    Info {
        /// Which
        address: String,
    },
    /// Change settings
    Set {
        /// Which
        address: String,
        #[command(flatten)]
        settings: SettingArgs,
    },
    /// Remove an address with its messages, groups and dead letters
    Rm {
        /// Which
        address: String,
        /// Only count
        #[arg(long)]
        dry_run: bool,
    },
    /// Remove the messages of an address
    Purge {
        /// Which
        address: String,
        /// Only count
        #[arg(long)]
        dry_run: bool,
    },
}

/// Settings of an address; those left out stay as they are.
#[derive(Args, Clone, Debug)]
pub(crate) struct SettingArgs {
    /// Messages stay at least this long
    #[arg(long, value_parser = parse::duration)]
    min_age: Option<Duration>,
    /// Failed attempts before a message is dead-lettered
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    attempts: Option<u32>,
    /// Lease of a delivery, at most 10 minutes
    #[arg(long, value_parser = lease)]
    lease: Option<Duration>,
    /// Waiting bytes of one shard above which publishes are refused
    #[arg(long, value_parser = parse::bytes)]
    backlog_bytes: Option<u64>,
}

fn lease(text: &str) -> Result<Duration, String> {
    let lease = parse::duration(text)?;
    if lease.is_zero() || lease > LEASE_TOTAL_MAX {
        return Err(format!("a lease is longer than 0 and at most {} s", LEASE_TOTAL_MAX.as_secs()));
    }
    Ok(lease)
}

impl SettingArgs {
    fn settings(&self) -> Settings {
        Settings {
            min_age: self.min_age,
            attempts_max: self.attempts,
            lease: self.lease,
            backlog_bytes_max: self.backlog_bytes,
        }
    }
}

/// An address from the command line.
pub(crate) fn address(text: &str) -> Outcomes<Address> {
    Address::parse(text)
        .map_err(|error| swarmmq_client::Error::Name { given: text.to_owned(), error })
        .map_err(Failure::from)
}

/// An address that messages can be sent to.
pub(crate) fn sendable(text: &str) -> Outcomes<Address> {
    let address = address(text)?;
    if address.is_dead_letter() {
        return Err(Failure::usage(
            format!(
                "{address} names a dead-letter queue: the cluster makes those, they can only be received from"
            ),
            "a last segment `dlq` is reserved: use another address",
        ));
    }
    Ok(address)
}

/// The answer was of another kind than the question.
pub(crate) fn unexpected() -> Failure {
    Failure::new(
        1,
        "malformed",
        "the node gave an answer that does not fit the question",
        "use nodes of this version",
    )
}

/// A question whose answer is a number of messages.
pub(crate) async fn count(client: &SwarmMq, request: AdminRequest) -> Outcomes<u64> {
    match client.admin(request).await? {
        Some(AdminAnswer::Count { messages }) => Ok(messages),
        _ => Err(unexpected()),
    }
}

/// Counts first and tells, then does it, unless it is a rehearsal.
pub(crate) async fn destroy(
    client: &SwarmMq,
    as_json: bool,
    what: serde_json::Value,
    sentence: &str,
    request: impl Fn(bool) -> AdminRequest,
    dry_run: bool,
) -> Outcomes<()> {
    let expected = count(client, request(true)).await?;
    if !as_json {
        say(sentence.replace("{}", &expected.to_string()));
    }
    let messages = if dry_run { expected } else { count(client, request(false)).await? };
    if as_json {
        let mut line = what;
        line["messages"] = messages.into();
        line["dry_run"] = dry_run.into();
        print(&line);
    } else if dry_run {
        say("nothing was changed: this was a dry run");
    } else {
        say(format!("done: {messages} messages"));
    }
    Ok(())
}

/// An address that was there before keeps its settings: whoever asked for others must know.
async fn check_settings(client: &SwarmMq, address: &Address, wanted: &Settings) -> Outcomes<()> {
    if *wanted == Settings::default() {
        return Ok(());
    }
    let answer = client.admin(AdminRequest::AddressInfo { address: address.clone() }).await?;
    let Some(AdminAnswer::Address(info)) = answer else { return Err(unexpected()) };
    let has = &info.settings;
    let differs = wanted.min_age.is_some() && wanted.min_age != has.min_age
        || wanted.attempts_max.is_some() && wanted.attempts_max != has.attempts_max
        || wanted.lease.is_some() && wanted.lease != has.lease
        || wanted.backlog_bytes_max.is_some() && wanted.backlog_bytes_max != has.backlog_bytes_max;
    if !differs {
        return Ok(());
    }
    Err(Failure::new(
        1,
        "exists",
        format!("{address} existed with other settings, and keeps them"),
        format!("see `swarmmq address info {address}`, change them with `swarmmq address set`"),
    ))
}

#[derive(Serialize)]
struct Info<'a> {
    address: &'a str,
    order: &'static str,
    shards: Vec<Shard>,
    groups: Vec<Group<'a>>,
}

#[derive(Serialize)]
struct Shard {
    id: u32,
    leader: u16,
    messages: u64,
    bytes: u64,
}

/// One group, as printed.
#[derive(Serialize)]
pub(crate) struct Group<'a> {
    name: &'a str,
    lag_messages: u64,
    lag_seconds: f64,
    leased: u64,
    dead_lettered: u64,
}

impl<'a> From<&'a GroupInfo> for Group<'a> {
    fn from(info: &'a GroupInfo) -> Self {
        Self {
            name: info.name.as_str(),
            lag_messages: info.lag_messages,
            lag_seconds: info.lag_ms as f64 / 1000.0,
            leased: info.leased,
            dead_lettered: info.dead_lettered,
        }
    }
}

impl<'a> From<&'a AddressInfo> for Info<'a> {
    fn from(info: &'a AddressInfo) -> Self {
        let shard = |shard: &swarmmq_protocol::admin::ShardInfo| Shard {
            id: shard.id.0,
            leader: shard.leader,
            messages: shard.messages,
            bytes: shard.bytes,
        };
        Self {
            address: info.address.as_str(),
            order: info.order.text(),
            shards: info.shards.iter().map(shard).collect(),
            groups: info.groups.iter().map(Group::from).collect(),
        }
    }
}

/// A table of groups.
pub(crate) fn group_table(groups: &[GroupInfo]) {
    let rows: Vec<Vec<String>> = groups
        .iter()
        .map(|group| {
            vec![
                group.name.to_string(),
                group.lag_messages.to_string(),
                format!("{:.1} s", group.lag_ms as f64 / 1000.0),
                group.leased.to_string(),
                group.dead_lettered.to_string(),
            ]
        })
        .collect();
    table(&["GROUP", "WAITING", "OLDEST", "LEASED", "DEAD-LETTERED"], &rows);
}

fn show(info: &AddressInfo) {
    say(format!("{}: order {}", info.address, info.order.text()));
    let settings = &info.settings;
    let seconds = |duration: Option<Duration>| {
        duration.map_or("default".to_owned(), |d| format!("{} s", d.as_secs_f64()))
    };
    let number = |number: Option<u64>| number.map_or("default".to_owned(), |number| number.to_string());
    say(format!(
        "settings: min-age {}, attempts {}, lease {}, backlog-bytes {}",
        seconds(settings.min_age),
        number(settings.attempts_max.map(u64::from)),
        seconds(settings.lease),
        number(settings.backlog_bytes_max)
    ));
    let rows: Vec<Vec<String>> = info
        .shards
        .iter()
        .map(|shard| {
            let leader = if shard.leader == 0 { "none".to_owned() } else { shard.leader.to_string() };
            vec![shard.id.0.to_string(), leader, shard.messages.to_string(), shard.bytes.to_string()]
        })
        .collect();
    table(&["SHARD", "LEADER", "MESSAGES", "BYTES"], &rows);
    if !info.groups.is_empty() {
        group_table(&info.groups);
    }
}

/// The command.
pub(crate) async fn run(command: &AddressCommand, target: &Target, as_json: bool) -> Outcomes<u8> {
    let name = match command {
        AddressCommand::Ls => None,
        AddressCommand::Create { address: name, .. } => Some(sendable(name)?),
        AddressCommand::Info { address: name }
        | AddressCommand::Set { address: name, .. }
        | AddressCommand::Rm { address: name, .. }
        | AddressCommand::Purge { address: name, .. } => Some(address(name)?),
    };
    if let AddressCommand::Set { settings, .. } = command
        && settings.settings() == Settings::default()
    {
        return Err(Failure::usage(
            "nothing to set",
            "give --min-age, --attempts, --lease or --backlog-bytes",
        ));
    }
    let client = target.connect(CONNECT_TIME_MAX).await?;
    match (command, name) {
        (AddressCommand::Create { order, settings, .. }, Some(address)) => {
            let (order, settings) = (*order, settings.settings());
            let request =
                AdminRequest::AddressCreate { address: address.clone(), order, settings: settings.clone() };
            client.admin(request).await?;
            check_settings(&client, &address, &settings).await?;
            if as_json {
                print(&json!({"address": address.as_str(), "order": order.text()}));
            } else {
                say(format!("{address} exists, order {}", order.text()));
            }
        }
        (AddressCommand::Info { .. }, Some(address)) => {
            let answer = client.admin(AdminRequest::AddressInfo { address }).await?;
            let Some(AdminAnswer::Address(info)) = answer else { return Err(unexpected()) };
            if as_json {
                print(&Info::from(&info));
            } else {
                show(&info);
            }
        }
        (AddressCommand::Set { settings, .. }, Some(address)) => {
            let settings = settings.settings();
            client.admin(AdminRequest::AddressSet { address: address.clone(), settings }).await?;
            if as_json {
                print(&json!({"address": address.as_str()}));
            } else {
                say(format!("{address} is set"));
            }
        }
        (AddressCommand::Rm { dry_run, .. }, Some(address)) => {
            let sentence = format!("removing {address} with {{}} messages, its groups and its dead letters");
            let request = |dry_run| AdminRequest::AddressRemove { address: address.clone(), dry_run };
            destroy(&client, as_json, json!({"address": address.as_str()}), &sentence, request, *dry_run)
                .await?;
        }
        (AddressCommand::Purge { dry_run, .. }, Some(address)) => {
            let sentence = format!("removing {{}} messages of {address}");
            let request = |dry_run| AdminRequest::AddressPurge { address: address.clone(), dry_run };
            destroy(&client, as_json, json!({"address": address.as_str()}), &sentence, request, *dry_run)
                .await?;
        }
        (_, _) => {
            let answer = client.admin(AdminRequest::AddressList).await?;
            let Some(AdminAnswer::Addresses(addresses)) = answer else { return Err(unexpected()) };
            if as_json {
                let list: Vec<_> = addresses
                    .iter()
                    .map(|(address, order)| json!({"address": address.as_str(), "order": order.text()}))
                    .collect();
                print(&json!({"addresses": list}));
            } else {
                let rows: Vec<Vec<String>> = addresses
                    .iter()
                    .map(|(address, order)| vec![address.to_string(), order.text().to_owned()])
                    .collect();
                table(&["ADDRESS", "ORDER"], &rows);
            }
        }
    }
    client.close().await;
    Ok(0)
}

#[cfg(test)]
mod tests {
    use swarmmq_protocol::{
        admin::ShardInfo,
        id::{GroupName, ShardId},
    };

    use super::*;

    #[test]
    fn information_about_an_address_has_the_promised_shape() {
        let info = AddressInfo {
            address: Address::parse("a.b").unwrap(),
            order: Order::Total,
            settings: Settings::default(),
            shards: vec![ShardInfo { id: ShardId(3), leader: 2, messages: 10, bytes: 10_240 }],
            groups: vec![GroupInfo {
                name: GroupName::parse("default").unwrap(),
                lag_messages: 10,
                lag_ms: 1500,
                leased: 2,
                dead_lettered: 0,
            }],
        };
        assert_eq!(
            serde_json::to_string(&Info::from(&info)).unwrap(),
            r#"{"address":"a.b","order":"total","shards":[{"id":3,"leader":2,"messages":10,"bytes":10240}],"groups":[{"name":"default","lag_messages":10,"lag_seconds":1.5,"leased":2,"dead_lettered":0}]}"#
        );
    }
}
