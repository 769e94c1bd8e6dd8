//! `route`: which way packets take between nodes, and why. The nodes explain; this file only prints.

use std::{collections::BTreeMap, time::Duration};

use clap::{Args, Subcommand};
use serde::Serialize;
use serde_json::json;
use swarmmq_client::SwarmMq;
use swarmmq_protocol::{
    admin::{AdminAnswer, AdminRequest},
    id::NodeId,
    route::{LinkFault, LinkView, NodeRoutes, RelayView, Route, RouteExplanation, RouteWhy},
};

use crate::{
    address::unexpected,
    discover::{CONNECT_TIME_MAX, Target},
    output::{Failure, Outcomes, note, print, say, table},
    parse, signals,
};

/// Pause between two looks of `watch`.
const WATCH_PAUSE: Duration = Duration::from_secs(1);

/// What to know of routes.
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum RouteCommand {
    /// The path in use from every node to every other, what it costs, and why it was taken
    Ls {
        #[command(flatten)]
        patience: Patience,
    },
    /// Why packets take the path that they take: candidates, costs, measurements, what would change it
    Explain {
        /// The node where it begins; it explains
        #[arg(value_parser = clap::value_parser!(u16).range(1..))]
        from: u16,
        /// The node where it ends
        #[arg(value_parser = clap::value_parser!(u16).range(1..))]
        to: u16,
        #[command(flatten)]
        patience: Patience,
    },
    /// Every change of a path, as it happens, until interrupted
    Watch {
        #[command(flatten)]
        patience: Patience,
    },
}

/// How long to wait.
#[derive(Args, Clone, Debug)]
pub(crate) struct Patience {
    /// Longest wait for a connection, and for each answer
    #[arg(long, value_name = "TIME", value_parser = parse::duration, default_value = "5s")]
    timeout: Duration,
}

/// The command.
pub(crate) async fn run(command: &RouteCommand, target: &Target, as_json: bool) -> Outcomes<u8> {
    let (RouteCommand::Ls { patience }
    | RouteCommand::Explain { patience, .. }
    | RouteCommand::Watch { patience }) = command;
    let timeout = patience.timeout;
    if let RouteCommand::Explain { from, to, .. } = command
        && from == to
    {
        return Err(Failure::usage(format!("node {from} sends nothing to itself"), "name two nodes"));
    }
    tokio::select! {
        biased;
        result = answer(command, target, timeout, as_json) => result,
        signal = signals::wait() => {
            signal?;
            Err(Failure::interrupted(false, "interrupted"))
        }
    }
}

async fn answer(command: &RouteCommand, target: &Target, timeout: Duration, as_json: bool) -> Outcomes<u8> {
    let client = target.connect(timeout.min(CONNECT_TIME_MAX)).await?;
    match command {
        RouteCommand::Ls { .. } => list(&routes(&client, timeout).await?, as_json),
        RouteCommand::Explain { from, to, .. } => explain(&client, *from, *to, timeout, as_json).await?,
        RouteCommand::Watch { .. } => return watch(&client, timeout, as_json).await,
    }
    client.close().await;
    Ok(0)
}

/// Asks, and waits for the answer no longer than that.
async fn ask(client: &SwarmMq, request: AdminRequest, timeout: Duration) -> Outcomes<AdminAnswer> {
    match tokio::time::timeout(timeout, client.admin(request)).await {
        Ok(answer) => answer?.ok_or_else(unexpected),
        Err(_) => {
            let what = format!("no answer within {} s", timeout.as_secs_f64());
            Err(Failure::new(3, "unreachable", what, "see `swarmmq status`, or wait longer with --timeout"))
        }
    }
}

async fn routes(client: &SwarmMq, timeout: Duration) -> Outcomes<Vec<NodeRoutes>> {
    match ask(client, AdminRequest::Routes, timeout).await? {
        AdminAnswer::Routes(all) => Ok(all),
        _ => Err(unexpected()),
    }
}

fn numbers(path: &[NodeId]) -> Vec<u16> {
    path.iter().map(|node| node.0).collect()
}

fn named(path: &[NodeId]) -> String {
    if path.is_empty() {
        return "none".to_owned();
    }
    path.iter().map(|node| node.0.to_string()).collect::<Vec<_>>().join("-")
}

fn ms(us: u64) -> f64 {
    us as f64 / 1_000.0
}

fn cost(us: Option<u64>) -> String {
    us.map_or_else(|| "-".to_owned(), |us| format!("{:.2} ms", ms(us)))
}

fn ago(millis: u64) -> String {
    match millis / 1_000 {
        seconds @ 0..60 => format!("{seconds}s ago"),
        seconds @ 60..3_600 => format!("{}m{}s ago", seconds / 60, seconds % 60),
        seconds => format!("{}h{}m ago", seconds / 3_600, seconds / 60 % 60),
    }
}

fn why(why: RouteWhy) -> String {
    match why {
        RouteWhy::Cheaper { from_us, to_us } => {
            format!("cheaper: {} -> {}", cost(Some(from_us)), cost(Some(to_us)))
        }
        why => why.text().to_owned(),
    }
}

/// One route in JSON.
#[derive(Serialize)]
struct Line {
    from: u16,
    to: u16,
    path: Vec<u16>,
    links: usize,
    cost_ms: Option<f64>,
    before: Vec<u16>,
    why: &'static str,
    cheaper_from_ms: Option<f64>,
    cheaper_to_ms: Option<f64>,
    changed_seconds_ago: f64,
    changes: u64,
}

impl Line {
    fn of(from: NodeId, route: &Route) -> Self {
        let cheaper = match route.why {
            RouteWhy::Cheaper { from_us, to_us } => Some((ms(from_us), ms(to_us))),
            _ => None,
        };
        Self {
            from: from.0,
            to: route.to.0,
            path: numbers(&route.path),
            links: route.path.len().saturating_sub(1),
            cost_ms: route.cost_us.map(ms),
            before: numbers(&route.before),
            why: route.why.text(),
            cheaper_from_ms: cheaper.map(|cheaper| cheaper.0),
            cheaper_to_ms: cheaper.map(|cheaper| cheaper.1),
            changed_seconds_ago: ms(route.changed_ms),
            changes: route.changes,
        }
    }
}

fn list(all: &[NodeRoutes], as_json: bool) {
    let silent: Vec<u16> = all.iter().filter(|said| said.routes.is_none()).map(|said| said.from.0).collect();
    let routes = all.iter().flat_map(|said| said.routes.iter().flatten().map(|route| (said.from, route)));
    if as_json {
        let routes: Vec<Line> = routes.map(|(from, route)| Line::of(from, route)).collect();
        print(&json!({ "routes": routes, "unanswered": silent }));
        return;
    }
    let rows: Vec<Vec<String>> = routes
        .map(|(from, route)| {
            vec![
                from.0.to_string(),
                route.to.0.to_string(),
                named(&route.path),
                cost(route.cost_us),
                route.path.len().saturating_sub(1).to_string(),
                ago(route.changed_ms),
                why(route.why),
            ]
        })
        .collect();
    table(&["FROM", "TO", "PATH", "COST", "LINKS", "SINCE", "WHY"], &rows);
    silent.iter().for_each(|node| say(format!("node {node} did not answer")));
}

async fn explain(client: &SwarmMq, from: u16, to: u16, timeout: Duration, as_json: bool) -> Outcomes<()> {
    let request = AdminRequest::RouteExplain { from: NodeId(from), to: NodeId(to) };
    let said = match ask(client, request, timeout).await? {
        AdminAnswer::RouteExplanation(Some(said)) => said,
        AdminAnswer::RouteExplanation(None) => {
            return Err(Failure::new(
                3,
                "unreachable",
                format!("node {from} did not answer: only it knows why it takes a path"),
                format!(
                    "`swarmmq status` tells how node {from} is; `swarmmq route explain {to} {from}` tells the way to it"
                ),
            ));
        }
        _ => return Err(unexpected()),
    };
    if as_json {
        print(&as_object(&said));
    } else {
        show(&said);
    }
    Ok(())
}

fn as_object(said: &RouteExplanation) -> serde_json::Value {
    let candidates: Vec<_> = said
        .candidates
        .iter()
        .map(|candidate| {
            json!({
                "path": numbers(&candidate.path), "cost_ms": ms(candidate.cost_us()),
                "links_ms": ms(candidate.links_us), "relays_ms": ms(candidate.relays_us),
                "in_use": candidate.path == said.route.path,
            })
        })
        .collect();
    let links: Vec<_> = said
        .links
        .iter()
        .map(|link| {
            let words: Vec<_> = link
                .words
                .iter()
                .map(|word| json!({ "by": word.by.0, "rtt_ms": ms(word.rtt_us.into()), "loss_permille": word.loss_permille }))
                .collect();
            json!({
                "from": link.from.0, "to": link.to.0, "cost_ms": link.cost_us.map(|us| ms(us.into())),
                "half_rtt_ms": ms(link.half_rtt_us.into()), "loss_ms": ms(link.loss_us.into()),
                "avoided": link.faults.avoid() && !link.faults.exclude(),
                "faults": link.faults.iter().map(LinkFault::text).collect::<Vec<_>>(),
                "own": link.is_own, "said": words, "penalty": link.penalty,
                "until_seconds": (link.until_ms > 0).then(|| ms(link.until_ms.into())),
            })
        })
        .collect();
    let relays: Vec<_> = said
        .relays
        .iter()
        .map(|relay| {
            json!({
                "node": relay.node.0, "cost_ms": relay.cost_us.map(|us| ms(us.into())),
                "surcharge_ms": ms(relay.surcharge_us.into()), "lag_ms": ms(relay.lag_us.into()),
                "router": relay.is_router, "heard_seconds_ago": relay.heard_ms.map(ms),
            })
        })
        .collect();
    json!({
        "from": said.from.0, "to": said.route.to.0, "route": Line::of(said.from, &said.route),
        "streak": said.streak, "streak_needed": said.streak_needed, "worth_ms": said.worth_us.map(ms),
        "candidates": candidates, "links": links, "relays": relays, "next": said.next,
    })
}

fn show(said: &RouteExplanation) {
    let route = &said.route;
    say(format!(
        "from node {} to node {}: {}, {}",
        said.from.0,
        route.to.0,
        named(&route.path),
        cost(route.cost_us)
    ));
    let before =
        if route.before.is_empty() { String::new() } else { format!(", {} before", named(&route.before)) };
    let times = if route.changes == 1 { "change" } else { "changes" };
    say(format!(
        "taken {}: {}{before}; {} {times} so far",
        ago(route.changed_ms),
        why(route.why),
        route.changes
    ));
    say(format!("changes next: {}", said.next));
    say(format!("streak {} of {}", said.streak, said.streak_needed));
    let rows: Vec<Vec<String>> = said
        .candidates
        .iter()
        .map(|candidate| {
            vec![
                named(&candidate.path),
                cost(Some(candidate.cost_us())),
                cost(Some(candidate.links_us)),
                cost(Some(candidate.relays_us)),
                if candidate.path == route.path { "in use".to_owned() } else { String::new() },
            ]
        })
        .collect();
    say("");
    table(&["CANDIDATE", "COST", "LINKS", "RELAYS", ""], &rows);
    say("");
    let rows: Vec<Vec<String>> = said.links.iter().map(link_row).collect();
    table(&["LINK", "COST", "RTT/2", "LOSS", "PENALTY", "STATE", "WHO SAYS SO"], &rows);
    say("");
    let rows: Vec<Vec<String>> = said.relays.iter().map(relay_row).collect();
    table(&["RELAY", "COST", "SURCHARGE", "LAG", "HEARD", "STATE"], &rows);
}

fn link_row(link: &LinkView) -> Vec<String> {
    let mut state: Vec<String> = link.faults.iter().map(|fault| meaning(fault, link)).collect();
    match () {
        () if link.faults.exclude() => state.insert(0, "not used".to_owned()),
        () if link.faults.avoid() => state.insert(0, "avoided".to_owned()),
        () => state.push("good".to_owned()),
    }
    if link.until_ms > 0 {
        state.push(format!("for {:.0} s more", ms(link.until_ms.into()).ceil()));
    }
    let words = link.words.iter().map(|word| {
        let kind = if link.is_own && word.by == link.from { "measured by" } else { "reported by" };
        let loss = f64::from(word.loss_permille) / 10.0;
        format!("{kind} {}: rtt {:.2} ms, loss {loss:.1} %", word.by.0, ms(word.rtt_us.into()))
    });
    vec![
        format!("{}-{}", link.from.0, link.to.0),
        cost(link.cost_us.map(u64::from)),
        cost(Some(link.half_rtt_us.into())),
        cost(Some(link.loss_us.into())),
        if link.is_own { link.penalty.to_string() } else { "-".to_owned() },
        state.join(", "),
        words.collect::<Vec<_>>().join("; "),
    ]
}

fn meaning(fault: LinkFault, link: &LinkView) -> String {
    match fault {
        LinkFault::NoConnection => "no connection".to_owned(),
        LinkFault::Silent => "silent".to_owned(),
        LinkFault::Unheard => format!("node {} hears nothing over it", link.to.0),
        LinkFault::Suppressed => "failed again and again".to_owned(),
        LinkFault::Doubted => format!("node {} could not use it just now", link.from.0),
        LinkFault::Gone => format!("the process of node {} is gone", link.to.0),
        LinkFault::DownByFrom => format!("node {} says it is down", link.from.0),
        LinkFault::DownByTo => format!("node {} says it is down", link.to.0),
        LinkFault::Unreported => "not reported by both ends".to_owned(),
    }
}

fn relay_row(relay: &RelayView) -> Vec<String> {
    let state = match () {
        () if relay.cost_us.is_some() => "passes on",
        () if !relay.is_router => "not used: it has not the role router",
        () => "not used: not heard just now",
    };
    vec![
        relay.node.0.to_string(),
        cost(relay.cost_us.map(u64::from)),
        cost(Some(relay.surcharge_us.into())),
        cost(Some(relay.lag_us.into())),
        relay.heard_ms.map_or_else(|| "never".to_owned(), |ms| format!("{ms} ms ago")),
        state.to_owned(),
    ]
}

/// What `watch` has seen: all routes of a node, by their end; `None`: it did not answer.
type Seen = BTreeMap<NodeId, Option<BTreeMap<NodeId, Route>>>;

/// Something that `watch` tells.
#[derive(Debug, PartialEq, Eq)]
enum News {
    Changed {
        from: NodeId,
        old: Vec<NodeId>,
        route: Route,
        /// Changes since the last look that were over before anybody looked.
        unseen: u64,
    },
    Answers(NodeId, bool),
}

fn seen(all: Vec<NodeRoutes>) -> Seen {
    let by_end = |routes: Vec<Route>| routes.into_iter().map(|route| (route.to, route)).collect();
    all.into_iter().map(|said| (said.from, said.routes.map(by_end))).collect()
}

/// Brings `known` up to date and says what is new. Of a node that does not answer, its last routes stay known.
fn news(known: &mut Seen, silent: &mut BTreeMap<NodeId, bool>, now: Seen) -> Vec<News> {
    let mut news = Vec::new();
    for (from, routes) in now {
        let was_silent = silent.insert(from, routes.is_none());
        if was_silent.is_some_and(|was| was != routes.is_none()) {
            news.push(News::Answers(from, routes.is_some()));
        }
        let Some(routes) = routes else { continue };
        if let Some(Some(old)) = known.get(&from) {
            for (to, route) in &routes {
                let (old_path, old_changes) =
                    old.get(to).map_or((&[][..], 0), |old| (old.path.as_slice(), old.changes));
                // A node that was started again counts from nothing.
                let changes = route.changes.saturating_sub(old_changes);
                if route.path != old_path || changes > 0 {
                    let (old, route) = (old_path.to_vec(), route.clone());
                    news.push(News::Changed { from, old, route, unseen: changes.saturating_sub(1) });
                }
            }
        }
        known.insert(from, Some(routes));
    }
    news
}

fn tell(news: &News, as_json: bool) {
    let now = parse::now();
    match news {
        News::Changed { from, old, route, unseen } => {
            let time =
                parse::rfc3339(swarmmq_protocol::time::WallTime(now.0.saturating_sub(route.changed_ms)));
            if as_json {
                let mut line =
                    serde_json::to_value(Line::of(*from, route)).expect("plain fields can be written");
                line["time"] = json!(time);
                line["old_path"] = json!(numbers(old));
                line["unseen_changes"] = json!(unseen);
                print(&line);
                return;
            }
            let unseen = if *unseen == 0 { String::new() } else { format!(" ({unseen} more in between)") };
            let (old, new) = (named(old), named(&route.path));
            say(format!("{time}  {} to {}  {old} -> {new}  {}{unseen}", from.0, route.to.0, why(route.why)));
        }
        News::Answers(node, answers) => {
            let time = parse::rfc3339(now);
            if as_json {
                print(&json!({ "time": time, "node": node.0, "answers": answers }));
                return;
            }
            let what = if *answers { "answers again" } else { "does not answer" };
            say(format!("{time}  node {} {what}", node.0));
        }
    }
}

async fn watch(client: &SwarmMq, timeout: Duration, as_json: bool) -> Outcomes<u8> {
    let (mut known, mut silent) = (Seen::new(), BTreeMap::new());
    let first = seen(routes(client, timeout).await?);
    let count: usize = first.values().flatten().map(BTreeMap::len).sum();
    let _nothing_is_new = news(&mut known, &mut silent, first);
    note(format!("watching {count} routes; a line for each change"));
    let mut is_lost = false;
    loop {
        tokio::time::sleep(WATCH_PAUSE).await;
        match routes(client, timeout).await {
            Ok(all) => {
                if std::mem::take(&mut is_lost) {
                    note("there are answers again");
                }
                news(&mut known, &mut silent, seen(all)).iter().for_each(|news| tell(news, as_json));
            }
            Err(failure) if failure.exit == 3 => {
                if !std::mem::replace(&mut is_lost, true) {
                    note(format!("{}; still trying", failure.message));
                }
            }
            Err(failure) => return Err(failure),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(nodes: &[u16]) -> Vec<NodeId> {
        nodes.iter().copied().map(NodeId).collect()
    }

    fn route(nodes: &[u16], changes: u64) -> Route {
        Route {
            to: NodeId(2),
            path: path(nodes),
            cost_us: Some(200),
            before: Vec::new(),
            why: RouteWhy::Found,
            changed_ms: 0,
            changes,
        }
    }

    fn look(routes: Option<Route>) -> Seen {
        let routes = routes.map(|route| vec![route]);
        seen(vec![NodeRoutes { from: NodeId(1), routes }])
    }

    #[test]
    fn a_change_is_told_once_and_what_was_missed_is_counted() {
        let (mut known, mut silent) = (Seen::new(), BTreeMap::new());
        assert_eq!(news(&mut known, &mut silent, look(Some(route(&[1, 2], 1)))), []);
        assert_eq!(news(&mut known, &mut silent, look(Some(route(&[1, 2], 1)))), []);
        let told = news(&mut known, &mut silent, look(Some(route(&[1, 3, 2], 2))));
        let (old, from) = (path(&[1, 2]), NodeId(1));
        let detour = route(&[1, 3, 2], 2);
        assert_eq!(told, [News::Changed { from, old, route: detour.clone(), unseen: 0 }]);
        assert_eq!(news(&mut known, &mut silent, look(None)), [News::Answers(from, false)]);
        assert_eq!(news(&mut known, &mut silent, look(None)), []);
        let back = route(&[1, 3, 2], 4);
        let told = news(&mut known, &mut silent, look(Some(back.clone())));
        let changed = News::Changed { from, old: detour.path, route: back, unseen: 1 };
        assert_eq!(told, [News::Answers(from, true), changed]);
        // Started again: fewer changes, the same path.
        assert_eq!(news(&mut known, &mut silent, look(Some(route(&[1, 3, 2], 1)))), []);
    }

    #[test]
    fn times_and_costs_are_short() {
        assert_eq!(
            (ago(900), ago(61_000), ago(7_260_000)),
            ("0s ago".into(), "1m1s ago".into(), "2h1m ago".into())
        );
        assert_eq!((cost(None), cost(Some(1_900))), ("-".to_owned(), "1.90 ms".to_owned()));
        let cheaper = RouteWhy::Cheaper { from_us: 9_000, to_us: 1_900 };
        assert_eq!(why(cheaper), "cheaper: 9.00 ms -> 1.90 ms");
    }
}
