//! Which way packets take between any two nodes, for whoever looks. Each node knows its own choices alone, so the node that
//! the client is connected to asks the others, waits a bounded time, and says who did not answer.
//!
//! Absent here: what a route costs and why it is taken (`swarm/explain`).

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use swarmmq_protocol::{
    admin::AdminAnswer,
    codec::{DecodeError, Reader},
    error::Code,
    frame::AdminReply,
    id::NodeId,
    packet::Class,
    route::{NodeRoutes, RouteExplanation},
    time::Instant,
};

use super::{ConnectionId, Node, Now, QUESTIONS_MAX, letter::Letter};

/// Time in which a node must answer. It looks at what it has at hand, so what is later was lost.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(1);
/// Pause after which whoever has not answered is asked again: a change of path may have lost the question.
const ASK_PAUSE: Duration = Duration::from_millis(300);

/// What a node is asked.
#[derive(Clone, Copy, Debug)]
pub(super) enum Wanted {
    /// All of its routes.
    Routes,
    /// Why the one to this node is as it is.
    Explanation(NodeId),
}

/// A look at routes under way.
#[derive(Debug)]
pub(super) struct Survey {
    connection: ConnectionId,
    request: u64,
    wanted: Wanted,
    /// Who has not answered.
    open: BTreeSet<NodeId>,
    routes: BTreeMap<NodeId, NodeRoutes>,
    explanation: Option<Box<RouteExplanation>>,
    since: Instant,
    asked_at: Instant,
}

impl Survey {
    /// What a node said. `Err`: it does not fit the question, and that node has not answered.
    fn take(&mut self, from: NodeId, said: Bytes) -> Result<(), DecodeError> {
        let mut reader = Reader::new(said);
        match self.wanted {
            Wanted::Routes => {
                let routes = NodeRoutes::read(&mut reader)?;
                reader.end()?;
                if routes.from != from {
                    return Err(DecodeError::Invalid("from"));
                }
                self.routes.insert(from, routes);
            }
            Wanted::Explanation(to) => {
                let explanation = RouteExplanation::read(&mut reader)?;
                reader.end()?;
                if (explanation.from, explanation.route.to) != (from, to) {
                    return Err(DecodeError::Invalid("from"));
                }
                self.explanation = Some(Box::new(explanation));
            }
        }
        self.open.remove(&from);
        Ok(())
    }

    fn wakes_at(&self) -> Instant {
        (self.asked_at + ASK_PAUSE).min(self.since + ANSWER_TIME_MAX)
    }
}

impl Node {
    /// All nodes that packets may go between, as far as this one knows.
    fn nodes_with_routes(&self) -> BTreeSet<NodeId> {
        let members = self.cluster_shard().state().catalog.members.nodes.keys().copied();
        members.chain(self.swarm.choices().map(|(node, _)| node)).chain([self.config.node]).collect()
    }

    pub(super) fn survey_routes(&mut self, now: Now, connection: ConnectionId, request: u64) {
        let nodes = self.nodes_with_routes();
        self.survey(now, connection, request, Wanted::Routes, nodes);
    }

    pub(super) fn explain_route(
        &mut self,
        now: Now,
        connection: ConnectionId,
        request: u64,
        from: NodeId,
        to: NodeId,
    ) {
        let nodes = self.nodes_with_routes();
        match [from, to].into_iter().find(|node| !nodes.contains(node)) {
            Some(_) if self.is_learning() => {
                self.fail(connection, request, Code::NotLeader, "the node does not know everything yet");
            }
            Some(node) => {
                let what = format!("the cluster has no node {}", node.0);
                self.fail(connection, request, Code::NoSuchNode, &what);
            }
            None if from == to => {
                let what = "a node sends nothing to itself";
                self.fail(connection, request, Code::NotAllowed, what);
            }
            None => self.survey(now, connection, request, Wanted::Explanation(to), [from].into()),
        }
    }

    fn survey(
        &mut self,
        now: Now,
        connection: ConnectionId,
        request: u64,
        wanted: Wanted,
        open: BTreeSet<NodeId>,
    ) {
        let Some(state) = self.connections.get_mut(&connection) else { return };
        if state.operations >= QUESTIONS_MAX {
            self.fail(connection, request, Code::Busy, "too many open questions on this connection");
            return;
        }
        state.operations += 1;
        let ticket = self.number();
        let is_asked = open.contains(&self.config.node);
        let survey = Survey {
            connection,
            request,
            wanted,
            open,
            routes: BTreeMap::new(),
            explanation: None,
            since: now.monotonic,
            asked_at: now.monotonic,
        };
        self.surveys.insert(ticket, survey);
        if is_asked {
            let said = self.routes_told(now, wanted);
            self.routes_said(ticket, self.config.node, said);
        }
        self.ask_routes(now, ticket);
    }

    /// Asks whoever has not answered. Where no way leads there is nobody to wait for.
    fn ask_routes(&mut self, now: Now, ticket: u64) {
        let Some(survey) = self.surveys.get_mut(&ticket) else { return };
        survey.asked_at = now.monotonic;
        let is_reached = |node: &NodeId| *node == self.config.node || self.ways.lead_to(*node);
        survey.open.retain(is_reached);
        let (open, wanted) = (survey.open.clone(), survey.wanted);
        for node in open {
            self.post(node, Class::Settlement, Letter::RoutesWanted { ticket, wanted });
        }
        self.conclude_survey(ticket);
    }

    /// What this node answers.
    pub(super) fn routes_told(&self, now: Now, wanted: Wanted) -> Bytes {
        let mut out = BytesMut::new();
        match wanted {
            Wanted::Routes => {
                let routes = Some(self.swarm.routes(now.monotonic));
                NodeRoutes { from: self.config.node, routes }.put(&mut out);
            }
            Wanted::Explanation(to) => self.swarm.explain(now.monotonic, to).put(&mut out),
        }
        out.freeze()
    }

    /// `from` answers.
    pub(super) fn routes_said(&mut self, ticket: u64, from: NodeId, said: Bytes) {
        let Some(survey) = self.surveys.get_mut(&ticket).filter(|survey| survey.open.contains(&from)) else {
            return;
        };
        if survey.take(from, said).is_err() {
            self.peers.malformed += 1;
            return;
        }
        self.conclude_survey(ticket);
    }

    /// Answers the client, if nobody is waited for any more.
    fn conclude_survey(&mut self, ticket: u64) {
        if self.surveys.get(&ticket).is_some_and(|survey| survey.open.is_empty()) {
            self.end_survey(ticket);
        }
    }

    fn end_survey(&mut self, ticket: u64) {
        let Some(mut survey) = self.surveys.remove(&ticket) else { return };
        if let Some(state) = self.connections.get_mut(&survey.connection) {
            state.operations -= 1;
        }
        let answer = match survey.wanted {
            Wanted::Routes => {
                let silent = |from| NodeRoutes { from, routes: None };
                let nodes = self.nodes_with_routes().into_iter();
                let all = nodes.map(|node| survey.routes.remove(&node).unwrap_or_else(|| silent(node)));
                AdminAnswer::Routes(all.collect())
            }
            Wanted::Explanation(_) => AdminAnswer::RouteExplanation(survey.explanation),
        };
        self.send(survey.connection, survey.request, &AdminReply(answer));
    }

    /// Asks again, or waits no longer.
    pub(super) fn survey_on(&mut self, now: Now) {
        let due = |survey: &Survey| survey.wakes_at() <= now.monotonic;
        let due: Vec<u64> =
            self.surveys.iter().filter(|(_, survey)| due(survey)).map(|(ticket, _)| *ticket).collect();
        for ticket in due {
            if now.monotonic.since(self.surveys[&ticket].since) >= ANSWER_TIME_MAX {
                self.end_survey(ticket);
            } else {
                self.ask_routes(now, ticket);
            }
        }
    }

    /// When [`Node::survey_on`] has something to do.
    pub(super) fn survey_wake(&self) -> Option<Instant> {
        self.surveys.values().map(Survey::wakes_at).min()
    }

    /// Whoever asked is gone.
    pub(super) fn forsake_surveys(&mut self, connection: ConnectionId) {
        self.surveys.retain(|_, survey| survey.connection != connection);
    }
}
