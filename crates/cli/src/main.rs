//! `swarmmq`: the one executable. Reads the command line and hands it to the file named after the subcommand.

mod access;
mod acks;
mod address;
mod bench;
mod certs;
mod demo;
mod dev;
mod discover;
mod group;
mod keys;
mod measure;
mod members;
mod node;
mod node_keys;
mod output;
mod parse;
mod ports;
mod reasons;
mod recv;
mod route;
mod send;
mod settings;
mod signals;
mod status;

use std::{future::Future, path::PathBuf, process::ExitCode};

use clap::{Args, Parser, Subcommand, error::ErrorKind};

use self::{
    discover::Target,
    members::MemberCommand,
    output::{Failure, Outcomes},
};

/// A message queue that delivers every acknowledged message exactly once, sealed from end to end.
///
/// Exit codes: 0 ok, 1 definitely not done or a bad verdict, 2 usage or configuration, 3 unreachable, 4 refused,
/// 5 outcome unknown, 6 limit or full disk, 7 local data or port, 8 timeout, 10 degraded, 11 critical, 130 interrupted.
#[derive(Debug, Parser)]
#[command(name = "swarmmq", version, max_term_width = 110)]
struct Cli {
    /// Print JSON, one compact object per line, the result last
    #[arg(long, global = true)]
    json: bool,
    #[command(flatten)]
    target: Target,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// A local cluster, traffic and faults, and a verdict
    Demo,
    /// A local cluster of real processes
    #[command(subcommand)]
    Dev(dev::DevCommand),
    /// Send messages
    Send(send::SendArgs),
    /// Receive messages
    Recv(recv::RecvArgs),
    /// What exists
    #[command(subcommand)]
    Address(address::AddressCommand),
    /// Who consumes, and how far behind
    #[command(subcommand)]
    Group(group::GroupCommand),
    /// Nodes, shards, leaders, health
    Status,
    /// Which way packets take between nodes, and why
    #[command(subcommand)]
    Route(route::RouteCommand),
    /// What can be changed while the cluster runs
    #[command(subcommand)]
    Settings(settings::SettingsCommand),
    /// Principals: who may do what
    #[command(subcommand)]
    Access(access::AccessCommand),
    /// Load, with a check for loss, duplicates and order
    #[command(subcommand)]
    Bench(BenchCommand),
    /// Certificates: who is a node
    #[command(subcommand)]
    Certs(certs::CertsCommand),
    /// Keyrings
    #[command(subcommand)]
    Keys(keys::KeysCommand),
    /// Make a cluster: once, on one node
    Init {
        /// The node.toml
        #[arg(long)]
        config: PathBuf,
        /// Nodes that know the peer secret may join without a token
        #[arg(long)]
        open_join: bool,
    },
    /// Run one node in the foreground; or add, drain, remove nodes
    Node(NodeArgs),
    #[command(hide = true)]
    DemoProducer(demo::worker::ProducerArgs),
    #[command(hide = true)]
    DemoConsumer(demo::worker::ConsumerArgs),
}

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
struct NodeArgs {
    /// The node.toml of the node to run; SIGTERM drains and stops it
    #[arg(long, required = true)]
    config: Option<PathBuf>,
    /// The file with what `swarmmq node token` printed; - is standard input. A member needs none
    #[arg(long, value_name = "FILE")]
    join_token: Option<PathBuf>,
    /// Leave the process session of whoever started it
    #[arg(long, hide = true)]
    own_session: bool,
    #[command(subcommand)]
    command: Option<MemberCommand>,
}

#[derive(Debug, Subcommand)]
enum BenchCommand {
    /// From producers through the cluster to consumers
    E2e(bench::E2eArgs),
    /// Policies side by side: how unkeyed messages are spread
    Routing(bench::routing::RoutingArgs),
    /// Many connections at once, most of them idle
    Connections(bench::connections::ConnectionsArgs),
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    match run(&cli) {
        Ok(code) => ExitCode::from(code),
        Err(failure) => failure.report(cli.json),
    }
}

/// Help is no failure; everything else is told in the form that was asked for.
fn usage(error: &clap::Error) -> ExitCode {
    let help = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
    if !help && std::env::args_os().any(|argument| argument == "--json") {
        let text = error.render().to_string();
        let message = text.trim_start_matches("error: ").split("\n\n").next().unwrap_or_default();
        let tip = text.lines().find_map(|line| line.trim().strip_prefix("tip: "));
        return Failure::usage(message.trim(), tip.unwrap_or("see `swarmmq --help`")).report(true);
    }
    // A closed terminal has nobody to tell it to.
    let _closed = error.print().is_err();
    ExitCode::from(if help { 0 } else { 2 })
}

fn run(cli: &Cli) -> Outcomes<u8> {
    let (target, json) = (&cli.target, cli.json);
    match &cli.command {
        Command::Demo => demo::run(json),
        Command::Dev(command) => dev::run(command, json),
        Command::Send(args) => wait(send::run(args, target, json)),
        Command::Recv(args) => wait(recv::run(args, target, json)),
        Command::Address(command) => wait(address::run(command, target, json)),
        Command::Group(command) => wait(group::run(command, target, json)),
        Command::Status => wait(status::run(target, json)),
        Command::Route(command) => wait(route::run(command, target, json)),
        Command::Settings(command) => wait(settings::run(command, target, json)),
        Command::Access(command) => wait(access::run(command, target, json)),
        Command::Bench(BenchCommand::Routing(args)) => bench::routing::run(args, target, json),
        Command::Bench(BenchCommand::E2e(args)) => bench::run(args, target, json),
        Command::Bench(BenchCommand::Connections(args)) => bench::connections::run(args, target, json),
        Command::Certs(command) => certs::run(command, json),
        Command::Keys(command) => keys::run(command, target, json),
        Command::Init { config, open_join } => {
            node::refuse_keyring(target).and_then(|()| node::init(config, *open_join, json))
        }
        Command::Node(args) => run_node(args, target, json),
        Command::DemoProducer(args) => wait(demo::worker::produce(args, target)),
        Command::DemoConsumer(args) => wait(demo::worker::consume(args, target)),
    }
}

fn run_node(args: &NodeArgs, target: &Target, json: bool) -> Outcomes<u8> {
    match (&args.command, &args.config) {
        (Some(MemberCommand::Add { dir, roles }), _) => members::add(dir, roles, json),
        (Some(command), _) => wait(members::run(command, target, json)),
        (None, Some(config)) => node::refuse_keyring(target)
            .and_then(|()| node::run(config, args.join_token.as_deref(), args.own_session)),
        (None, None) => Err(Failure::usage("--config is missing", "name the node.toml of the node to run")),
    }
}

/// Runs a command that waits for the network.
fn wait<T>(command: impl Future<Output = Outcomes<T>>) -> Outcomes<T> {
    runtime()?.block_on(command)
}

/// A runtime on this thread.
fn runtime() -> Outcomes<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::local(format!("cannot start: {error}"), "check the limits of the process"))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn options_may_stand_before_and_after_the_subcommand() {
        for line in [
            "swarmmq --json recv a -n 3 --from -1h --timeout 2s",
            "swarmmq recv a --json -n 3 --from -1h --timeout 2s --servers a:1",
        ] {
            let cli = Cli::try_parse_from(line.split(' ')).unwrap();
            assert!(cli.json && matches!(cli.command, Command::Recv(_)), "{line}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_a_usage_error() {
        for line in
            ["swarmmq", "swarmmq recv", "swarmmq recv a --peek --group g", "swarmmq send a b --order fifo"]
        {
            assert_eq!(Cli::try_parse_from(line.split(' ')).unwrap_err().exit_code(), 2, "{line}");
        }
    }
}
