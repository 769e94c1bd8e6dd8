//! What needs several steps: making sure that addresses, queues and groups exist before something is done with them,
//! and changing them in every shard that has them.
//!
//! An operation is a goal. Each time its questions are answered it looks again at what is missing, asks for that, and
//! ends when nothing is. So it can be repeated at any point, by this node or by the next.

use swarmmq_protocol::{
    admin::{self, AdminAnswer, AdminRequest, Order},
    error::{Code, Outcome as Fate},
    frame::{AdminReply, Answer as Reply, Resolve, Resolved, StartAt, Subscribe, Subscribed},
    id::{Address, Attempt, GroupName, Offset, ProducerEpoch, ProducerName, ShardId},
    limits::LEASE_TOTAL_MAX,
    mac,
};

use super::{ConnectionId, Node, Now, QUESTIONS_MAX, Waiting, consume::Subscriber};
use crate::shard::{
    Answer, Work,
    delivery::{Joining, SubscriberId},
    event::{CatalogEvent, Event, Settings, Start},
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
    Subscribe(Subscribe),
    Create {
        address: Address,
        order: Order,
        settings: Settings,
    },
    /// The catalog was told first; the shards follow.
    Change {
        address: Address,
        settings: Settings,
        told: bool,
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
}

/// An operation under way.
#[derive(Debug)]
pub(super) struct Operation {
    connection: ConnectionId,
    request: u64,
    goal: Goal,
    outstanding: usize,
    count: u64,
    /// Something was changed already.
    committed: bool,
    refused: Option<(Fate, Code)>,
}

/// What an operation does next.
enum Step {
    /// Ask these questions and wait.
    Ask(Vec<(usize, Event)>),
    Done,
    Fail(Code, &'static str),
}

impl Node {
    pub(super) fn resolve(&mut self, now: Now, connection: ConnectionId, request: u64, frame: Resolve) {
        self.begin(now, connection, request, Goal::Resolve(frame));
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
        self.begin(now, connection, request, Goal::Subscribe(frame));
    }

    pub(super) fn admin(&mut self, now: Now, connection: ConnectionId, request: u64, frame: AdminRequest) {
        if !matches!(frame, AdminRequest::Status) && self.is_learning() {
            self.fail(connection, request, Code::NotLeader, "the node does not know everything yet");
            return;
        }
        let goal = match frame {
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
                Goal::Change { settings: patched(&entry.settings, &settings), address, told: false }
            }
            AdminRequest::AddressRemove { address, dry_run: false } => Goal::Remove { address, stage: 0 },
            AdminRequest::ProducerTakeOver { name } => Goal::TakeOver { name, stage: 0 },
            AdminRequest::AddressPurge { address, dry_run: false } => Goal::Purge { address, stage: 0 },
            AdminRequest::GroupRemove { address, group, dry_run: false } => {
                Goal::RemoveGroup { address, group, stage: 0 }
            }
            AdminRequest::GroupSeek { address, group, start, dry_run: false } => {
                Goal::Seek { address, group, start: start_of(start), stage: 0 }
            }
            look => {
                match self.look(now, &look) {
                    Ok(answer) => self.send(connection, request, &AdminReply(answer)),
                    Err(code) => self.fail(connection, request, code, "no such address or group"),
                }
                return;
            }
        };
        self.begin(now, connection, request, goal);
    }

    fn begin(&mut self, now: Now, connection: ConnectionId, request: u64, goal: Goal) {
        if self.is_learning() {
            self.fail(connection, request, Code::NotLeader, "the node does not know everything yet");
            return;
        }
        let reads_only = matches!(goal, Goal::Resolve(_));
        if let Some(code) = self.refuses_writes().filter(|_| !reads_only) {
            self.fail(connection, request, code, "this node takes no changes now");
            return;
        }
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
            goal,
            outstanding: 0,
            count: 0,
            committed: false,
            refused: None,
        };
        self.operations.insert(id, operation);
        self.advance(now, id);
    }

    pub(super) fn operation_answered(&mut self, now: Now, id: OperationId, answer: Answer) {
        let Some(operation) = self.operations.get_mut(&id) else { return };
        operation.outstanding -= 1;
        match answer {
            Answer::Committed(Outcome::Count(count)) => {
                operation.count += count;
                operation.committed = true;
            }
            Answer::Committed(Outcome::Refused(code)) | Answer::Refused(code) => {
                operation.refused = Some((Fate::Failed, code));
            }
            Answer::Unknown(code) => operation.refused = Some((Fate::Unknown, code)),
            Answer::Committed(_) => operation.committed = true,
        }
        if operation.outstanding == 0 {
            self.advance(now, id);
        }
    }

    fn advance(&mut self, now: Now, id: OperationId) {
        let Some(mut operation) = self.operations.remove(&id) else { return };
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
            let reply = Reply { outcome, code: code.number(), message: message.into() };
            self.send(operation.connection, operation.request, &reply);
            return;
        }
        match self.step(&mut operation.goal) {
            Step::Fail(code, what) => self.fail(operation.connection, operation.request, code, what),
            Step::Done => self.finish(now, &operation),
            Step::Ask(questions) => {
                operation.outstanding = questions.len();
                if let Some(state) = self.connections.get_mut(&operation.connection) {
                    state.operations += 1;
                }
                self.operations.insert(id, operation);
                for (index, event) in questions {
                    let ticket = self.ticket(Waiting::Operation(id));
                    let mut work = Work::default();
                    self.shards[index].propose(&event, Some(ticket), &mut work);
                    self.dirty[index] = true;
                    self.carry(now, index, work);
                }
            }
        }
    }

    fn step(&self, goal: &mut Goal) -> Step {
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
            Goal::Subscribe(frame) => self.step_subscribe(frame),
            Goal::Change { address, settings, told } => {
                if !*told {
                    *told = true;
                    let event =
                        CatalogEvent::AddressChanged { address: address.clone(), settings: settings.clone() };
                    return Step::Ask(vec![(cluster, Event::Catalog(event))]);
                }
                let behind: Vec<_> = self
                    .with_queue(address)
                    .into_iter()
                    .filter(|index| self.shards[*index].state().queues[address].settings != *settings)
                    .map(|index| {
                        (index, Event::QueueChanged { address: address.clone(), settings: settings.clone() })
                    })
                    .collect();
                if behind.is_empty() { Step::Done } else { Step::Ask(behind) }
            }
            Goal::TakeOver { name, stage } => {
                let taken = CatalogEvent::ProducerTaken { name: name.clone() };
                once(stage, || vec![(cluster, Event::Catalog(taken))])
            }
            Goal::Purge { address, stage } => {
                if !catalog.addresses.contains_key(&base_of(address)) {
                    return Step::Fail(Code::NoSuchAddress, "no such address");
                }
                let purge = |index| (index, Event::QueuePurged { address: address.clone() });
                once(stage, || self.with_queue(address).into_iter().map(purge).collect())
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
                        questions.extend(self.with_queue(&each).into_iter().map(remove));
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
                        .with_group(address, group)
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
                    self.with_group(address, group)
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

    fn step_subscribe(&self, frame: &mut Subscribe) -> Step {
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
        let mut missing = Vec::new();
        for index in self.shards_of(address, entry.order) {
            match self.shards[index].state().queues.get(address) {
                None => missing.push((
                    index,
                    Event::QueueMade {
                        address: address.clone(),
                        order: entry.order,
                        settings: entry.settings.clone(),
                    },
                )),
                Some(queue) if !queue.groups.contains_key(&frame.group) => missing.push((
                    index,
                    Event::GroupMade { address: address.clone(), group: frame.group.clone(), start: *start },
                )),
                Some(_) => {}
            }
        }
        if missing.is_empty() { Step::Done } else { Step::Ask(missing) }
    }

    fn finish(&mut self, now: Now, operation: &Operation) {
        let (connection, request) = (operation.connection, operation.request);
        match &operation.goal {
            Goal::Resolve(frame) => {
                let entry = &self.cluster_shard().state().catalog.addresses[&base_of(&frame.address)];
                let resolved = Resolved { order: entry.order, shard_count: self.config.shard_count };
                self.send(connection, request, &resolved);
            }
            Goal::Subscribe(frame) => self.subscribed(now, connection, request, frame),
            Goal::Create { .. } | Goal::Change { .. } => self.send(connection, request, &Reply::ok()),
            Goal::TakeOver { name, .. } => {
                let answer = AdminAnswer::Producer {
                    producer: mac::producer_of(self.config.cluster, name),
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

    fn subscribed(&mut self, now: Now, connection: ConnectionId, request: u64, frame: &Subscribe) {
        if !self.connections.get(&connection).is_some_and(super::connection::Connection::is_ready) {
            return;
        }
        if self.subscription(connection, frame.subscription).is_some() {
            // Two subscriptions under one number were asked for at once; this one came second.
            self.fail(connection, request, Code::Exists, "this subscription number is in use");
            return;
        }
        let id = SubscriberId(self.number());
        let order = self.cluster_shard().state().catalog.addresses[&frame.address].order;
        let shards = self.shards_of(&frame.address, order);
        let mut terms = Vec::new();
        let mut lost: Vec<(ShardId, Offset)> = Vec::new();
        for index in shards.clone() {
            let shard = &mut self.shards[index];
            let held: Vec<(Offset, Attempt)> = frame
                .held
                .iter()
                .filter(|held| held.shard == shard.id())
                .map(|held| (held.offset, held.attempt))
                .collect();
            let joining = Joining {
                subscriber: id,
                consumer: frame.consumer,
                address: &frame.address,
                group: &frame.group,
                held: &held,
            };
            match shard.subscribe(now, &joining) {
                Ok(gone) => {
                    lost.extend(gone.into_iter().map(|offset| (shard.id(), offset)));
                    terms.push((shard.id(), shard.term()));
                    self.dirty[index] = true;
                }
                Err(code) => {
                    for done in shards {
                        self.shards[done].unsubscribe(id);
                    }
                    self.fail(connection, request, code, "a shard of the address does not serve now");
                    return;
                }
            }
        }
        let known: Vec<ShardId> = terms.iter().map(|(shard, _)| *shard).collect();
        let foreign = frame.held.iter().filter(|held| !known.contains(&held.shard));
        lost.extend(foreign.map(|held| (held.shard, held.offset)));
        self.credits.grant(id, frame.credit_messages, frame.credit_bytes);
        let subscriber = Subscriber {
            connection,
            number: frame.subscription,
            address: frame.address.clone(),
            group: frame.group.clone(),
            shards,
        };
        self.subscribers.insert(id, subscriber);
        let state = self.connections.get_mut(&connection).expect("checked above");
        state.subscriptions.insert(frame.subscription, id);
        self.send(connection, request, &Subscribed { shards: terms, lost });
    }

    /// Ends a subscription; its leases stay until settled, re-claimed or run out.
    pub(super) fn unsubscribe(&mut self, id: SubscriberId) {
        let Some(subscriber) = self.subscribers.remove(&id) else { return };
        self.credits.remove(id);
        for index in subscriber.shards {
            self.shards[index].unsubscribe(id);
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

    pub(super) fn with_queue(&self, address: &Address) -> Vec<usize> {
        (0..self.shards.len())
            .filter(|index| self.shards[*index].state().queues.contains_key(address))
            .collect()
    }

    fn with_group(&self, address: &Address, group: &GroupName) -> Vec<usize> {
        let has = |index: &usize| {
            self.shards[*index]
                .state()
                .queues
                .get(address)
                .is_some_and(|queue| queue.groups.contains_key(group))
        };
        (0..self.shards.len()).filter(has).collect()
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
