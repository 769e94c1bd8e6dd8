//! What needs several steps: making sure that addresses, queues and groups exist before something is done with them,
//! and changing them in every shard that has them.
//!
//! An operation is a goal. Each time its questions are answered it looks again at what is missing, asks for that, and
//! ends when nothing is. So it can be repeated at any point, by this node or by the next.

use bytes::Bytes;
use swarmmq_protocol::{
    access::{AccessRequest, PrincipalName},
    admin::{self, AdminAnswer, AdminRequest, Order},
    error::{Code, Outcome as Fate},
    frame::{AdminReply, Answer as Reply, Resolve, Resolved, StartAt, Subscribe},
    id::{Address, GroupName, ProducerEpoch, ProducerName},
    limits::LEASE_TOTAL_MAX,
    mac,
    policy::Setting,
};

use super::{
    ConnectionId, Node, Now, QUESTIONS_MAX,
    access::{Denied, change_of},
    ask::Purpose,
    question::Question,
};
use crate::shard::{
    Answer,
    access::AccessEvent,
    event::{CatalogEvent, Event, Settings, Start},
    member::NodeEvent,
    state::Outcome,
};

/// Shortest lease: below it every delivery would run out on its way.
const LEASE_MIN: std::time::Duration = std::time::Duration::from_millis(100);

/// Names an operation under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct OperationId(pub(super) u64);

/// What is to be reached.
#[derive(Clone, Debug)]
enum Goal {
    Resolve(Resolve),
    Subscribe {
        frame: Subscribe,
        /// Queue and group exist in every shard of the address.
        prepared: bool,
    },
    /// What is there, without changing it.
    Look {
        question: AdminRequest,
        stage: u8,
        views: Vec<Bytes>,
    },
    Create {
        address: Address,
        order: Order,
        settings: Settings,
    },
    /// The catalog was told first; the shards follow.
    Change {
        address: Address,
        settings: Settings,
        stage: u8,
    },
    /// The shards forget first, the catalog last.
    Remove {
        address: Address,
        stage: u8,
    },
    Purge {
        address: Address,
        stage: u8,
    },
    TakeOver {
        name: ProducerName,
        stage: u8,
    },
    Seek {
        address: Address,
        group: GroupName,
        start: Start,
        stage: u8,
    },
    RemoveGroup {
        address: Address,
        group: GroupName,
        stage: u8,
    },
    /// A setting of the cluster is to change.
    Set {
        setting: Setting,
        stage: u8,
    },
    /// Principals or join tokens are to change.
    Access {
        event: AccessEvent,
        stage: u8,
    },
    /// A node is to be emptied, or goes.
    Node {
        event: NodeEvent,
        stage: u8,
    },
}

/// An operation under way.
#[derive(Debug)]
pub(super) struct Operation {
    connection: ConnectionId,
    request: u64,
    /// On whose behalf; `None`: root's.
    maker: Option<PrincipalName>,
    /// What it changes, as the audit log has it.
    change: Option<(&'static str, String)>,
    goal: Goal,
    outstanding: usize,
    count: u64,
    /// Something was changed already.
    committed: bool,
    refused: Option<(Fate, Code)>,
    /// The cluster's own shard was asked: what it has changed has to be known here before going on.
    asked_cluster: bool,
    /// It was asked how far its log goes.
    marking: bool,
    /// This node knew the cluster's facts as of some time after the operation began.
    fresh: bool,
}

/// What an operation does next.
enum Step {
    /// Propose these events and wait.
    Ask(Vec<(usize, Event)>),
    /// Ask these questions and wait.
    Question(Vec<(usize, Question)>),
    /// Learn first what the cluster knows.
    Mark,
    Done,
    Fail(Code, &'static str),
}

impl Node {
    pub(super) fn resolve(&mut self, now: Now, connection: ConnectionId, request: u64, frame: Resolve) {
        self.begin(now, connection, request, Goal::Resolve(frame), None);
    }

    pub(super) fn subscribe(&mut self, now: Now, connection: ConnectionId, request: u64, frame: Subscribe) {
        let subscriptions = &self.connections[&connection].subscriptions;
        if subscriptions.len() >= swarmmq_protocol::limits::SUBSCRIPTIONS_PER_CONNECTION_MAX {
            self.fail(connection, request, Code::Limit, "too many subscriptions on this connection");
            return;
        }
        if subscriptions.contains_key(&frame.subscription) {
            self.fail(connection, request, Code::Exists, "this subscription number is in use");
            return;
        }
        self.begin(now, connection, request, Goal::Subscribe { frame, prepared: false }, None);
    }

    pub(super) fn admin(&mut self, now: Now, connection: ConnectionId, request: u64, frame: AdminRequest) {
        // What this node and its neighbours see by themselves is told in any state.
        match frame {
            AdminRequest::Status => {
                let status = AdminAnswer::Status(self.status());
                return self.send(connection, request, &AdminReply(status));
            }
            AdminRequest::Routes => return self.survey_routes(now, connection, request),
            AdminRequest::RouteExplain { from, to } => {
                return self.explain_route(now, connection, request, from, to);
            }
            _ => {}
        }
        if self.is_learning() {
            self.fail(connection, request, Code::NotLeader, "the node does not know everything yet");
            return;
        }
        let change = change_of(&frame);
        let goal = match frame {
            AdminRequest::Access(wanted) => match self.access_event(now, wanted) {
                Ok(Some(event)) => Goal::Access { event, stage: 0 },
                Ok(None) => {
                    let question = AdminRequest::Access(AccessRequest::List);
                    Goal::Look { question, stage: 0, views: Vec::new() }
                }
                Err(why) => return self.fail(connection, request, Code::Malformed, why),
            },
            AdminRequest::AddressCreate { address, order, settings } => {
                if address.is_dead_letter() {
                    let what = "dead-letter queues come with their address";
                    self.fail(connection, request, Code::NotAllowed, what);
                    return;
                }
                Goal::Create { address, order, settings: patched(&Settings::default(), &settings) }
            }
            AdminRequest::AddressSet { address, settings } => {
                let Some(entry) = self.cluster_shard().state().catalog.addresses.get(&address) else {
                    self.fail(connection, request, Code::NoSuchAddress, "no such address");
                    return;
                };
                Goal::Change { settings: patched(&entry.settings, &settings), address, stage: 0 }
            }
            AdminRequest::AddressRemove { address, dry_run: false } => Goal::Remove { address, stage: 0 },
            AdminRequest::ProducerTakeOver { name } => Goal::TakeOver { name, stage: 0 },
            AdminRequest::NodeDrain { node, draining } => {
                Goal::Node { event: NodeEvent::Drained { node, draining }, stage: 0 }
            }
            AdminRequest::SettingSet { name, value } => match Setting::parse(&name, &value) {
                Ok(setting) => Goal::Set { setting, stage: 0 },
                Err(error) => {
                    return self.fail(connection, request, Code::Malformed, &error.to_string());
                }
            },
            AdminRequest::NodeRemove { node } => Goal::Node { event: NodeEvent::Removed { node }, stage: 0 },
            AdminRequest::AddressPurge { address, dry_run: false } => Goal::Purge { address, stage: 0 },
            AdminRequest::GroupRemove { address, group, dry_run: false } => {
                Goal::RemoveGroup { address, group, stage: 0 }
            }
            AdminRequest::GroupSeek { address, group, start, dry_run: false } => {
                Goal::Seek { address, group, start: start_of(start), stage: 0 }
            }
            question => Goal::Look { question, stage: 0, views: Vec::new() },
        };
        self.begin(now, connection, request, goal, change);
    }

    fn begin(
        &mut self,
        now: Now,
        connection: ConnectionId,
        request: u64,
        goal: Goal,
        change: Option<(&'static str, String)>,
    ) {
        if self.is_learning() {
            self.fail(connection, request, Code::NotLeader, "the node does not know everything yet");
            return;
        }
        let reads_only = matches!(goal, Goal::Resolve(_) | Goal::Look { .. });
        if let Some(code) = self.refuses_writes().filter(|_| !reads_only) {
            self.fail(connection, request, code, "this node takes no changes now");
            return;
        }
        let maker = self.name_of(connection).cloned();
        let Some(state) = self.connections.get_mut(&connection) else { return };
        if state.operations >= QUESTIONS_MAX {
            self.fail(connection, request, Code::Busy, "too many open questions on this connection");
            return;
        }
        state.operations += 1;
        let id = OperationId(self.number());
        let operation = Operation {
            connection,
            request,
            maker,
            change,
            goal,
            outstanding: 0,
            count: 0,
            committed: false,
            refused: None,
            asked_cluster: false,
            marking: false,
            fresh: false,
        };
        self.operations.insert(id, operation);
        self.advance(now, id);
    }

    pub(super) fn operation_answered(&mut self, now: Now, id: OperationId, answer: Answer) {
        let applied = self.cluster_shard().state().applied;
        let Some(operation) = self.operations.get_mut(&id) else { return };
        operation.outstanding -= 1;
        let tolerant = operation.goal.may_be_missing();
        match answer {
            Answer::Committed(Outcome::Count(mark)) if operation.marking => {
                operation.marking = false;
                operation.fresh = true;
                if mark > applied {
                    self.catching_up.push((id, mark));
                    return;
                }
            }
            Answer::Committed(Outcome::Count(count)) => {
                operation.count += count;
                operation.committed = true;
            }
            Answer::Committed(Outcome::Refused(Code::NoSuchAddress | Code::NoSuchGroup)) if tolerant => {}
            Answer::Committed(Outcome::Refused(code)) | Answer::Refused(code) => {
                operation.refused = Some((Fate::Failed, code));
            }
            Answer::Unknown(code) => operation.refused = Some((Fate::Unknown, code)),
            Answer::Found(view) => {
                if let Goal::Look { views, .. } = &mut operation.goal {
                    views.push(view);
                }
            }
            Answer::Committed(_) | Answer::Joined { .. } | Answer::Settled(_) => operation.committed = true,
        }
        if operation.outstanding == 0 {
            self.advance(now, id);
        }
    }

    /// The cluster's own shard has applied more: operations that waited for that go on.
    pub(super) fn go_on(&mut self, now: Now) {
        let applied = self.cluster_shard().state().applied;
        let ready: Vec<OperationId> =
            self.catching_up.iter().filter(|(_, mark)| *mark <= applied).map(|(id, _)| *id).collect();
        self.catching_up.retain(|(_, mark)| *mark > applied);
        ready.into_iter().for_each(|id| self.advance(now, id));
    }

    /// Whoever asked is gone and will not hear how it ends: what nobody was asked to do yet is not begun. Carried out when
    /// a leader is found at last, it would undo what the same client has asked for since by way of another node.
    pub(super) fn forsake(&mut self, connection: ConnectionId) {
        let unbegun = |operation: &Operation| operation.connection == connection && !operation.committed;
        let ids: Vec<OperationId> =
            self.operations.iter().filter(|(_, operation)| unbegun(operation)).map(|(id, _)| *id).collect();
        for id in ids {
            if self.take_back(id) {
                self.operations.remove(&id);
                self.catching_up.retain(|(waiting, _)| *waiting != id);
            }
        }
    }

    fn advance(&mut self, now: Now, id: OperationId) {
        let Some(mut operation) = self.operations.remove(&id) else { return };
        if !operation.committed && !self.connections.contains_key(&operation.connection) {
            return;
        }
        if let Some(state) = self.connections.get_mut(&operation.connection) {
            state.operations -= 1;
        }
        if let Some((outcome, code)) = operation.refused {
            // Done in part is not undone, and not done.
            let (outcome, message) = if operation.committed {
                (Fate::Unknown, "a shard refused it, others have done it")
            } else {
                (outcome, "the shard refused it")
            };
            self.audit_refused(now, &operation, code);
            let reply = Reply { outcome, code: code.number(), message: message.into() };
            self.send(operation.connection, operation.request, &reply);
            return;
        }
        let cluster = self.shards.len() - 1;
        let leads = self.cluster_shard().is_serving();
        let step = if std::mem::take(&mut operation.asked_cluster) && !leads {
            Step::Mark
        } else {
            let is_fresh = leads || operation.fresh;
            match self.step(&mut operation.goal, is_fresh) {
                // What is not known here may be known there.
                Step::Fail(..) if !is_fresh => Step::Mark,
                step => step,
            }
        };
        let questions: Vec<(usize, Question)> = match step {
            Step::Fail(code, what) => {
                self.fail(operation.connection, operation.request, code, what);
                return;
            }
            Step::Done => {
                self.finish(now, operation);
                return;
            }
            Step::Ask(events) => {
                let propose = |(index, event)| match &operation.maker {
                    None => Ok((index, Question::Propose(event))),
                    Some(name) => Ok((index, Question::Propose(self.on_behalf(name, event)?))),
                };
                match events.into_iter().map(propose).collect::<Result<Vec<_>, Denied>>() {
                    Ok(questions) => questions,
                    Err(denied) => {
                        self.audit_denied(now, operation.connection, &denied);
                        self.fail(operation.connection, operation.request, denied.code, denied.why);
                        return;
                    }
                }
            }
            Step::Question(questions) => questions,
            Step::Mark => {
                operation.marking = true;
                vec![(cluster, Question::Mark)]
            }
        };
        operation.asked_cluster = !operation.marking && questions.iter().any(|(index, _)| *index == cluster);
        operation.outstanding = questions.len();
        if let Some(state) = self.connections.get_mut(&operation.connection) {
            state.operations += 1;
        }
        self.operations.insert(id, operation);
        for (index, question) in questions {
            self.ask(now, index, question, Purpose::Operation(id));
        }
    }

    fn step(&self, goal: &mut Goal, is_fresh: bool) -> Step {
        let catalog = &self.cluster_shard().state().catalog;
        let cluster = self.shards.len() - 1;
        match goal {
            Goal::Resolve(frame) => {
                if frame.address.is_dead_letter() && !catalog.addresses.contains_key(&base_of(&frame.address))
                {
                    return Step::Fail(Code::NoSuchAddress, "dead-letter queues come with their address");
                }
                match catalog.addresses.get(&base_of(&frame.address)) {
                    Some(entry) if frame.order.is_some_and(|order| order != entry.order) => Step::Fail(
                        Code::OrderConflict,
                        "the address has another order, fixed at its first use",
                    ),
                    Some(_) => Step::Done,
                    None if !is_fresh => Step::Mark,
                    None if !frame.create => Step::Fail(Code::NoSuchAddress, "no such address"),
                    None => match self.refuses_writes() {
                        Some(code) => Step::Fail(code, "this node takes no changes now"),
                        None => Step::Ask(vec![(
                            cluster,
                            made(&frame.address, frame.order.unwrap_or(Order::Total), Settings::default()),
                        )]),
                    },
                }
            }
            Goal::Create { address, order, settings } => match catalog.addresses.get(address) {
                Some(entry) if entry.order != *order => {
                    Step::Fail(Code::OrderConflict, "the address has another order, fixed at its first use")
                }
                Some(_) => Step::Done,
                None => Step::Ask(vec![(cluster, made(address, *order, settings.clone()))]),
            },
            // What is not known here may exist, in another order than would be made up for it.
            Goal::Subscribe { frame, .. } if !is_fresh && !catalog.addresses.contains_key(&frame.address) => {
                Step::Mark
            }
            Goal::Subscribe { frame, prepared } => self.step_subscribe(frame, prepared),
            Goal::Look { question, stage, .. } => {
                if !is_fresh {
                    return Step::Mark;
                }
                let Some((address, start)) = looked_at(question) else { return Step::Done };
                let known = catalog.addresses.contains_key(&base_of(&address));
                if !known {
                    return Step::Fail(Code::NoSuchAddress, "no such address");
                }
                if *stage > 0 {
                    return Step::Done;
                }
                *stage = 1;
                let look = |index| (index, Question::Look { address: address.clone(), start });
                Step::Question(self.homes(&address).into_iter().map(look).collect())
            }
            Goal::Change { address, settings, stage } => {
                if *stage == 0 {
                    *stage = 1;
                    let event =
                        CatalogEvent::AddressChanged { address: address.clone(), settings: settings.clone() };
                    return Step::Ask(vec![(cluster, Event::Catalog(event))]);
                }
                if *stage == 1 {
                    *stage = 2;
                    let change = |index| {
                        (index, Event::QueueChanged { address: address.clone(), settings: settings.clone() })
                    };
                    return Step::Ask(self.homes(address).into_iter().map(change).collect());
                }
                Step::Done
            }
            Goal::TakeOver { name, stage } => {
                let taken = CatalogEvent::ProducerTaken { name: name.clone() };
                once(stage, || vec![(cluster, Event::Catalog(taken))])
            }
            Goal::Access { event, stage } => {
                let event = CatalogEvent::Access(event.clone());
                once(stage, || vec![(cluster, Event::Catalog(event))])
            }
            Goal::Set { setting, stage } => {
                once(stage, || vec![(cluster, Event::Catalog(CatalogEvent::Set(*setting)))])
            }
            // Whether the node is the last one that can hold data is not a question to old knowledge.
            Goal::Node { .. } if !is_fresh => Step::Mark,
            Goal::Node { event, stage } => {
                if *stage == 0 && !catalog.members.may_go(event) {
                    return Step::Fail(Code::NotAllowed, "it is the only node with the role store");
                }
                once(stage, || vec![(cluster, Event::Catalog(CatalogEvent::Node(event.clone())))])
            }
            Goal::Purge { address, stage } => {
                if !catalog.addresses.contains_key(&base_of(address)) {
                    return Step::Fail(Code::NoSuchAddress, "no such address");
                }
                let purge = |index| (index, Event::QueuePurged { address: address.clone() });
                once(stage, || self.homes(address).into_iter().map(purge).collect())
            }
            Goal::Remove { address, stage } => {
                if *stage == 0 {
                    if !catalog.addresses.contains_key(address) {
                        return Step::Fail(Code::NoSuchAddress, "no such address");
                    }
                    *stage = 1;
                    let mut questions = Vec::new();
                    for each in [Some(address.clone()), address.dead_letter()].into_iter().flatten() {
                        let remove = |index| (index, Event::QueueRemoved { address: each.clone() });
                        questions.extend(self.homes(&each).into_iter().map(remove));
                    }
                    if !questions.is_empty() {
                        return Step::Ask(questions);
                    }
                }
                if *stage == 1 {
                    *stage = 2;
                    let dead = address.dead_letter().filter(|dead| catalog.addresses.contains_key(dead));
                    let removed = [Some(address.clone()), dead].into_iter().flatten();
                    return Step::Ask(
                        removed
                            .map(|address| {
                                (cluster, Event::Catalog(CatalogEvent::AddressRemoved { address }))
                            })
                            .collect(),
                    );
                }
                Step::Done
            }
            Goal::RemoveGroup { address, group, stage } => {
                if *stage == 0 {
                    if !catalog.addresses.get(address).is_some_and(|entry| entry.groups.contains_key(group)) {
                        return Step::Fail(Code::NoSuchGroup, "no such group");
                    }
                    *stage = 1;
                    let questions: Vec<_> = self
                        .homes(address)
                        .into_iter()
                        .map(|index| {
                            (index, Event::GroupRemoved { address: address.clone(), group: group.clone() })
                        })
                        .collect();
                    if !questions.is_empty() {
                        return Step::Ask(questions);
                    }
                }
                if *stage == 1 {
                    *stage = 2;
                    let dropped =
                        CatalogEvent::GroupDropped { address: address.clone(), group: group.clone() };
                    return Step::Ask(vec![(cluster, Event::Catalog(dropped))]);
                }
                Step::Done
            }
            Goal::Seek { address, group, start, stage } => {
                if !catalog.addresses.get(address).is_some_and(|entry| entry.groups.contains_key(group)) {
                    return Step::Fail(Code::NoSuchGroup, "no such group");
                }
                let start = *start;
                once(stage, || {
                    self.homes(address)
                        .into_iter()
                        .map(|index| {
                            (
                                index,
                                Event::GroupSought { address: address.clone(), group: group.clone(), start },
                            )
                        })
                        .collect()
                })
            }
        }
    }

    fn step_subscribe(&self, frame: &mut Subscribe, prepared: &mut bool) -> Step {
        let catalog = &self.cluster_shard().state().catalog;
        let cluster = self.shards.len() - 1;
        let address = &frame.address;
        let base = base_of(address);
        let Some(entry) = catalog.addresses.get(address) else {
            let order = match catalog.addresses.get(&base) {
                Some(entry) => entry.order,
                None if address.is_dead_letter() => {
                    return Step::Fail(Code::NoSuchAddress, "dead-letter queues come with their address");
                }
                None => Order::Total,
            };
            return Step::Ask(vec![(cluster, made(address, order, Settings::default()))]);
        };
        let Some(start) = entry.groups.get(&frame.group) else {
            let told = frame.start.take().map(start_of);
            let defined = CatalogEvent::GroupDefined {
                address: address.clone(),
                group: frame.group.clone(),
                start: told,
            };
            return Step::Ask(vec![(cluster, Event::Catalog(defined))]);
        };
        if frame.start.is_some() && frame.held.is_empty() {
            return Step::Fail(Code::Exists, "the group exists: move it with `group seek`");
        }
        if std::mem::replace(prepared, true) {
            return Step::Done;
        }
        let prepare = |index| {
            let question = Question::Prepare {
                address: address.clone(),
                order: entry.order,
                settings: entry.settings.clone(),
                group: frame.group.clone(),
                start: *start,
            };
            (index, question)
        };
        Step::Question(self.shards_of(address, entry.order).into_iter().map(prepare).collect())
    }

    fn finish(&mut self, now: Now, operation: Operation) {
        let (connection, request) = (operation.connection, operation.request);
        if let Some((verb, address)) = operation.change.clone() {
            self.audit_change(now, connection, verb, address);
        }
        match operation.goal {
            Goal::Look { question, views, .. } => match self.looked(now, &question, views) {
                Ok(answer) => {
                    let answer = self.visible(connection, answer);
                    self.send(connection, request, &AdminReply(answer));
                }
                Err(code) => self.fail(connection, request, code, "no such address or group"),
            },
            Goal::Resolve(frame) => {
                let entry = &self.cluster_shard().state().catalog.addresses[&base_of(&frame.address)];
                let resolved = Resolved { order: entry.order, shard_count: self.config.shard_count };
                self.send(connection, request, &resolved);
            }
            Goal::Subscribe { frame, .. } => self.open_feeds(now, connection, request, &frame),
            Goal::Access { event: AccessEvent::Added { .. } | AccessEvent::Rotated { .. }, .. } => {
                self.send(connection, request, &AdminReply(AdminAnswer::Generation(operation.count)));
            }
            Goal::Access { .. } => self.send(connection, request, &Reply::ok()),
            Goal::Create { .. } | Goal::Change { .. } | Goal::Node { .. } | Goal::Set { .. } => {
                self.send(connection, request, &Reply::ok())
            }
            Goal::TakeOver { name, .. } => {
                let answer = AdminAnswer::Producer {
                    producer: mac::producer_of(self.config.cluster, &name),
                    epoch: ProducerEpoch(operation.count),
                };
                self.send(connection, request, &AdminReply(answer));
            }
            Goal::Remove { .. } | Goal::Purge { .. } | Goal::Seek { .. } | Goal::RemoveGroup { .. } => {
                let answer = AdminReply(AdminAnswer::Count { messages: operation.count });
                self.send(connection, request, &answer);
            }
        }
    }

    /// Refusals of rules, quotas and what administrators asked for are written down; those of the system itself are not.
    fn audit_refused(&mut self, now: Now, operation: &Operation, code: Code) {
        let is_ours = operation.change.is_some() || matches!(code, Code::Quota | Code::NotAllowed);
        if is_ours {
            let (verb, address) = operation.change.clone().unwrap_or(("use", "*".to_owned()));
            self.audit_denied(now, operation.connection, &Denied { verb, address, code, why: "" });
        }
    }

    /// Positions of the shards that hold `address`.
    pub(super) fn shards_of(&self, address: &Address, order: Order) -> Vec<usize> {
        match order {
            Order::Total => {
                let shard = mac::ring(&base_of(address), None, self.config.shard_count);
                vec![shard.0 as usize]
            }
            Order::Key | Order::None => (0..self.config.shard_count as usize).collect(),
        }
    }

    /// Positions of the shards that may hold `address`, as far as the cluster knows it.
    pub(super) fn homes(&self, address: &Address) -> Vec<usize> {
        let addresses = &self.cluster_shard().state().catalog.addresses;
        let entry = addresses.get(address).or_else(|| addresses.get(&base_of(address)));
        entry.map_or_else(Vec::new, |entry| self.shards_of(address, entry.order))
    }
}

impl Goal {
    /// Whether a shard may not have what the operation is about, and nothing is missing then.
    fn may_be_missing(&self) -> bool {
        matches!(
            self,
            Self::Change { .. }
                | Self::Remove { .. }
                | Self::Purge { .. }
                | Self::Seek { .. }
                | Self::RemoveGroup { .. }
        )
    }
}

/// Which address a question is about, and where a group would begin.
fn looked_at(question: &AdminRequest) -> Option<(Address, Option<Start>)> {
    match question {
        AdminRequest::AddressInfo { address }
        | AdminRequest::GroupList { address }
        | AdminRequest::AddressRemove { address, .. }
        | AdminRequest::AddressPurge { address, .. }
        | AdminRequest::GroupRemove { address, .. } => Some((address.clone(), None)),
        AdminRequest::GroupSeek { address, start, .. } => Some((address.clone(), Some(start_of(*start)))),
        _ => None,
    }
}

/// Asks `questions` once, then is done.
fn once(stage: &mut u8, questions: impl FnOnce() -> Vec<(usize, Event)>) -> Step {
    if *stage > 0 {
        return Step::Done;
    }
    *stage = 1;
    let questions = questions();
    if questions.is_empty() { Step::Done } else { Step::Ask(questions) }
}

fn made(address: &Address, order: Order, settings: Settings) -> Event {
    Event::Catalog(CatalogEvent::AddressMade { address: address.clone(), order, settings })
}

/// The address whose dead letters `address` holds; itself if it is no dead-letter queue.
pub(super) fn base_of(address: &Address) -> Address {
    if !address.is_dead_letter() {
        return address.clone();
    }
    address
        .as_str()
        .strip_suffix(".dlq")
        .and_then(|base| Address::parse(base).ok())
        .unwrap_or_else(|| address.clone())
}

pub(super) fn start_of(start: StartAt) -> Start {
    match start {
        StartAt::Oldest => Start::Oldest,
        StartAt::End => Start::End,
        StartAt::Time(time) => Start::Time(time),
    }
}

fn patched(base: &Settings, patch: &admin::Settings) -> Settings {
    Settings {
        min_age: patch.min_age.unwrap_or(base.min_age),
        attempts_max: patch.attempts_max.unwrap_or(base.attempts_max).max(1),
        lease: patch.lease.unwrap_or(base.lease).clamp(LEASE_MIN, LEASE_TOTAL_MAX),
        backlog_bytes_max: patch.backlog_bytes_max.unwrap_or(base.backlog_bytes_max),
    }
}
