//! How an empty disk, or one whose log is corrupt, finds its cluster: it asks the seeds, one after the other, until a member answers.
//!
//! Nothing is written before one has, and nothing is ever founded here: only `init` does that (safety rule 20).

use std::time::Duration;

use mio::Events;
use swarmmq_engine::node::{Now, Report};
use swarmmq_protocol::{
    error::Code,
    id::{ClusterId, NodeId},
    mac::DualKey,
    session::{guard::Source, peer::PeerHello},
    time::Instant,
};

use crate::{
    StartError,
    bootstrap::NodeConfig,
    clock::Clock,
    http::Shared,
    identity::new_incarnation,
    peers::{FIRST_TOKEN, Owner, PeerEvent, Peers},
    shutdown::Watch,
    telemetry::Timings,
    tls::Certificates,
};

/// Pause between words to whoever watches.
const REPORT_PAUSE: Duration = Duration::from_secs(1);
/// Bytes taken in one turn; a handshake has far fewer.
const BURST_BYTES_MAX: usize = 1 << 20;

/// What a disk that joins learns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) cluster: ClusterId,
    pub(crate) shard_count: u32,
    /// As the cluster was told.
    pub(crate) incarnation: u64,
}

/// A node that belongs to nobody yet.
struct Joiner {
    hello: PeerHello,
    found: Option<Found>,
}

impl Owner for Joiner {
    fn hello(&self) -> PeerHello {
        self.hello.clone()
    }

    fn admits(&self, _: Now, _: &PeerHello) -> Result<(), (Code, String)> {
        Ok(())
    }

    fn turned_away(&mut self, _: Now, _: Option<Source>, _: Option<NodeId>, _: Code) {}

    fn hear(&mut self, _: Now, event: PeerEvent) {
        if let PeerEvent::Up(member) = event
            && let Some(cluster) = member.cluster
            && member.shard_count > 0
        {
            tracing::info!(%cluster, seed = member.node.0, shards = member.shard_count, "found the cluster");
            let (shard_count, incarnation) = (member.shard_count, self.hello.incarnation);
            self.found = Some(Found { cluster, shard_count, incarnation });
        }
    }
}

/// Asks until a seed answers. `None`: somebody asked this process to stop.
///
/// * `who`: in words, for people.
pub(crate) fn find(
    config: &NodeConfig,
    secret: DualKey,
    certificates: &mut Certificates,
    clock: Clock,
    watch: &mut Watch,
    shared: &Shared,
    who: &str,
) -> Result<Option<Found>, StartError> {
    let addresses = config.addresses();
    let hello = PeerHello {
        cluster: None,
        shard_count: 0,
        node: config.node,
        incarnation: new_incarnation(),
        boot: 0,
        roles: config.roles,
        client: addresses.client,
        peer: addresses.peer,
        admin: addresses.admin,
        gossip: addresses.gossip,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        key: PeerHello::NO_KEY,
        join: None,
    };
    let mut joiner = Joiner { hello, found: None };
    let registry = watch.poll.registry().try_clone().map_err(|error| {
        StartError::local(format!("cannot start: {error}"), "check the limits of the process")
    })?;
    let mut peers =
        Peers::start(registry, None, &config.seeds, secret, certificates.security(), &joiner, clock.now())?;
    peers.set_token(config.token.clone());
    tracing::info!(node = config.node.0, seeds = ?config.seeds, "{who}: joining through the seeds");
    let mut events = Events::with_capacity(64);
    let mut next_report = Instant(0);
    loop {
        let now = clock.now();
        let mut budget = BURST_BYTES_MAX;
        for event in events.iter().filter(|event| event.token().0 >= FIRST_TOKEN) {
            peers.serve(now, event, &mut budget, &mut joiner);
        }
        if let Some(security) = certificates.look(now.monotonic, watch.shutdown.take_reload()) {
            peers.set_security(security);
        }
        peers.turn(now, &mut budget, &mut joiner);
        if watch.shutdown.is_asked() {
            tracing::info!("stopped before a seed answered");
            return Ok(None);
        }
        if let Some(error) = peers.take_fatal() {
            return Err(error);
        }
        if joiner.found.is_some() {
            return Ok(joiner.found);
        }
        if now.monotonic >= next_report {
            next_report = now.monotonic + REPORT_PAUSE;
            let reason = format!("joining: {who}, and no seed has answered yet ({})", peers.seeds_in_words());
            let report = Report { ready: false, reason, problems: Vec::new(), metrics: Vec::new() };
            shared.publish(&report, &Timings::default());
        }
        let wake = peers.next_at(now).map_or(next_report, |at| at.min(next_report));
        watch.wait(&mut events, wake.since(now.monotonic))?;
    }
}
