//! Who may do what at this node: a client's identity, and what its rules say of every frame that it sends.
//!
//! Asked is always this node's copy of the cluster's facts, request by request, so that a change takes effect on
//! connections that are open. What no rule allows is refused. Rules say what a node lets pass; who wrote a message is
//! for those who have its keys.

use swarmmq_protocol::{
    access::{AccessRequest, PrincipalInfo, PrincipalName, Quota, ROOT, Rules, Verb, is_root},
    admin::{AdminAnswer, AdminRequest},
    error::{Code, Outcome as Fate},
    frame::{Frame, Refused, Settle, SettleAction, SettledRun},
    limits::{PUBLISH_WINDOW_BYTES, RULES_MAX},
    mac::{DualKey, MacKey, certified_key, principal_token},
    session::handshake::{Auth, Candidates, Proven},
    time::Instant,
};

use super::{ConnectionId, Node, Now, audit::Seen};
use crate::shard::{
    access::{AccessEvent, Principal, Ticket},
    event::{CatalogEvent, Event},
};

/// Longest time for which the token before the current one may be accepted, and a join token may be used.
const TOKEN_TIME_MAX: std::time::Duration = std::time::Duration::from_secs(366 * 24 * 3600);

/// Who is at the other end of a connection, as it has proven.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Identity {
    /// May do everything.
    Root,
    /// A principal, with the token of this generation; `None`: with its certificate.
    Named(PrincipalName, Option<u64>),
}

impl Identity {
    pub(super) fn as_str(&self) -> &str {
        match self {
            Self::Root => ROOT,
            Self::Named(name, _) => name.as_str(),
        }
    }

    /// Whose rules and quotas count; `None`: there are none.
    pub(super) fn name(&self) -> Option<&PrincipalName> {
        match self {
            Self::Root => None,
            Self::Named(name, _) => Some(name),
        }
    }
}

/// What was refused, and why.
#[derive(Debug)]
pub(super) struct Denied {
    pub(super) verb: &'static str,
    pub(super) address: String,
    pub(super) code: Code,
    pub(super) why: &'static str,
}

impl Denied {
    fn rule(verb: Verb, address: Option<&str>) -> Self {
        let address = address.unwrap_or("*").to_owned();
        Self {
            verb: verb.text(),
            address,
            code: Code::NotAllowed,
            why: "no rule of this principal allows it",
        }
    }
}

/// What a question needs.
enum Need<'a> {
    /// This verb, at an address or for the whole cluster.
    Rule(Verb, Option<&'a str>),
    /// Any verb at this address.
    Any(&'a str),
    /// This verb anywhere.
    Somewhere(Verb),
    Nothing,
}

fn need_of_question(question: &AdminRequest) -> Need<'_> {
    match question {
        // What is not touched by its rules is left out of the answer.
        AdminRequest::AddressList => Need::Nothing,
        AdminRequest::AddressInfo { address } | AdminRequest::GroupList { address } => {
            Need::Any(address.as_str())
        }
        // Who may use an address may make it, within quotas: that is looked at when it is known not to exist.
        AdminRequest::AddressCreate { address, .. } => Need::Any(address.as_str()),
        AdminRequest::AddressSet { address, .. }
        | AdminRequest::AddressRemove { address, .. }
        | AdminRequest::AddressPurge { address, .. }
        | AdminRequest::GroupSeek { address, .. }
        | AdminRequest::GroupRemove { address, .. } => Need::Rule(Verb::Admin, Some(address.as_str())),
        AdminRequest::ProducerTakeOver { .. } => Need::Somewhere(Verb::Publish),
        AdminRequest::Status
        | AdminRequest::NodeDrain { .. }
        | AdminRequest::NodeRemove { .. }
        | AdminRequest::Routes
        | AdminRequest::RouteExplain { .. }
        | AdminRequest::SettingSet { .. }
        | AdminRequest::SettingList
        | AdminRequest::Access(_) => Need::Rule(Verb::Admin, None),
    }
}

impl Node {
    fn principal(&self, name: &PrincipalName) -> Option<&Principal> {
        self.cluster_shard().state().catalog.access.principals.get(name)
    }

    /// How `name` can prove itself here. Costs the same whether there is such a principal or not.
    ///
    /// * `certificate`: whose the session around the connection has shown. Root has none: who may make certificates is not who
    ///   may do everything.
    pub(super) fn candidates(
        &self,
        now: Now,
        name: &str,
        auth: Auth,
        certificate: Option<&str>,
    ) -> Candidates {
        let parsed = PrincipalName::parse(name).ok();
        let found = parsed.as_ref().and_then(|name| self.principal(name).map(|found| (name, found)));
        // Generations that are never given out, for a name that nobody has.
        let (mut current, mut before) = (0, u64::MAX);
        if let Some((_, principal)) = found {
            current = principal.generation;
            before = principal.previous.filter(|(_, until)| now.wall < *until).map_or(before, |(old, _)| old);
        }
        let tokens = self.config.access_token.all().flat_map(|access| {
            let token =
                |generation| MacKey::new(*principal_token(access, self.config.cluster, name, generation));
            match auth {
                Auth::Token if is_root(name) => [access.clone(), token(before)],
                Auth::Token => [token(current), token(before)],
                Auth::Certificate if certificate == Some(name) && found.is_some() => {
                    [(); 2].map(|()| certified_key(name))
                }
                Auth::Certificate => [(); 2].map(|()| token(u64::MAX)),
            }
        });
        let quota = |quota| found.map_or(0, |(_, principal)| principal.quotas.of(quota));
        let connections = found.map_or(0, |(name, _)| self.guests.connections(name));
        let is_full = quota(Quota::Connections) > 0 && connections >= quota(Quota::Connections);
        let window = Some(quota(Quota::InFlight)).filter(|bytes| *bytes > 0);
        Candidates {
            tokens: tokens.collect(),
            is_known: is_root(name) && auth == Auth::Token
                || found.is_some_and(|(_, principal)| principal.enabled),
            is_learning: self.is_learning(),
            not_now: is_full.then_some((Code::Quota, "the principal has as many connections as it may")),
            publish_window_bytes: window.unwrap_or(PUBLISH_WINDOW_BYTES),
        }
    }

    /// Whoever has proven to be somebody, with one of the tokens of [`Node::candidates`] or with a certificate; and which
    /// access token its own follows from.
    pub(super) fn identity(&self, proven: &Proven, auth: Auth) -> (Identity, Option<u32>) {
        let access = self.config.access_token.all().nth(proven.token / 2).map(MacKey::fingerprint);
        let Ok(name) = PrincipalName::parse(&proven.principal) else { return (Identity::Root, access) };
        if auth == Auth::Certificate {
            return (Identity::Named(name, None), None);
        }
        let is_current = proven.token.is_multiple_of(2);
        let generation = self.principal(&name).map_or(0, |principal| match principal.previous {
            Some((before, _)) if !is_current => before,
            _ => principal.generation,
        });
        (Identity::Named(name, Some(generation)), access)
    }

    /// Other keys count from now on. Whoever came in with a token of which nothing is left goes.
    pub(super) fn take_keys(
        &mut self,
        access_token: DualKey,
        admission_key: DualKey,
        cluster_secret: DualKey,
    ) {
        self.swarm.set_secret(cluster_secret.clone());
        let left: Vec<u32> = access_token.all().map(MacKey::fingerprint).collect();
        self.config.access_token = access_token;
        self.config.admission_key = admission_key;
        self.config.cluster_secret = cluster_secret;
        let is_out = |access: &u32| !left.contains(access);
        let ended: Vec<ConnectionId> = self
            .connections
            .iter()
            .filter(|(_, state)| !state.closing && state.access.as_ref().is_some_and(is_out))
            .map(|(id, _)| *id)
            .collect();
        for id in ended {
            let message = "the access token that this one's follows from is not accepted any more".to_owned();
            self.send(id, 0, &Refused { code: Code::Unauthenticated.number(), message });
            self.close(id);
        }
    }

    /// The principal of a connection, unless that is root.
    pub(super) fn name_of(&self, connection: ConnectionId) -> Option<&PrincipalName> {
        self.connections.get(&connection)?.identity.as_ref()?.name()
    }

    /// What a connection may do; `None`: everything.
    fn rules_of(&self, connection: ConnectionId) -> Option<&Rules> {
        static NONE: Rules = Rules(std::collections::BTreeSet::new());
        let identity = self.connections.get(&connection).and_then(|state| state.identity.as_ref());
        match identity {
            Some(Identity::Root) => None,
            Some(Identity::Named(name, _)) => {
                let principal = self.principal(name).filter(|principal| principal.enabled);
                Some(principal.map_or(&NONE, |principal| &principal.rules))
            }
            None => Some(&NONE),
        }
    }

    /// Whether `connection` may publish to `address`.
    pub(super) fn may_publish(&self, connection: ConnectionId, address: &str) -> bool {
        self.rules_of(connection).is_none_or(|rules| rules.allows(Verb::Publish, Some(address)))
    }

    /// Whether rules allow what a frame asks for. A publish is judged message by message instead.
    pub(super) fn judge_frame(&self, connection: ConnectionId, frame: &Frame) -> Result<(), Denied> {
        let Some(rules) = self.rules_of(connection) else { return Ok(()) };
        let need = match frame {
            Frame::Resolve(resolve) => Need::Any(resolve.address.as_str()),
            Frame::OpenSession(_) | Frame::Skip(_) | Frame::CloseSession(_) => Need::Somewhere(Verb::Publish),
            Frame::Subscribe(subscribe) => Need::Rule(Verb::Consume, Some(subscribe.address.as_str())),
            Frame::Peek(peek) => Need::Rule(Verb::Consume, Some(peek.address.as_str())),
            Frame::Settle(settle) => self.need_of_settle(connection, settle),
            Frame::Admin(question) => need_of_question(&question.0),
            _ => Need::Nothing,
        };
        let denied = match need {
            Need::Nothing => None,
            Need::Rule(verb, address) => (!rules.allows(verb, address)).then(|| Denied::rule(verb, address)),
            Need::Somewhere(verb) => (!rules.have(verb)).then(|| Denied::rule(verb, None)),
            Need::Any(address) => (!rules.touch(address))
                .then(|| Denied { verb: "look", ..Denied::rule(Verb::Admin, Some(address)) }),
        };
        denied.map_or(Ok(()), Err)
    }

    /// Giving back what was received is part of receiving.
    fn need_of_settle(&self, connection: ConnectionId, settle: &Settle) -> Need<'_> {
        let subscriber = self.subscription(connection, settle.subscription);
        let Some(address) = subscriber.and_then(|id| self.address_of(id)) else { return Need::Nothing };
        let only_returns = settle.items.iter().all(|item| item.action == SettleAction::Release);
        Need::Rule(if only_returns { Verb::Consume } else { Verb::Settle }, Some(address))
    }

    /// Tells a client that something is not allowed, and writes it down.
    pub(super) fn deny(
        &mut self,
        now: Now,
        connection: ConnectionId,
        request: u64,
        frame: &Frame,
        denied: &Denied,
    ) {
        self.audit_denied(now, connection, denied);
        if let Frame::Settle(settle) = frame {
            let (count, outcome) = (settle.items.len() as u16, Fate::Failed);
            let runs = vec![SettledRun { count, outcome, code: denied.code.number() }];
            return self.send(connection, request, &swarmmq_protocol::frame::Settled { runs });
        }
        let what = format!(
            "{} needs {}:{}: {}",
            self.identity_of(connection),
            denied.verb,
            denied.address,
            denied.why
        );
        self.fail(connection, request, denied.code, &what);
    }

    pub(super) fn identity_of(&self, connection: ConnectionId) -> &str {
        let state = self.connections.get(&connection);
        state.and_then(|state| state.identity.as_ref()).map_or("", Identity::as_str)
    }

    pub(super) fn audit_denied(&mut self, now: Now, connection: ConnectionId, denied: &Denied) {
        let Some(state) = self.connections.get(&connection) else { return };
        let principal = state.identity.as_ref().map_or("", Identity::as_str).to_owned();
        let seen = Seen {
            source: Some(state.source),
            principal,
            verb: denied.verb,
            address: denied.address.clone(),
            code: Some(denied.code),
        };
        self.audit.note(now, seen);
    }

    /// An administrator changed something.
    pub(super) fn audit_change(
        &mut self,
        now: Now,
        connection: ConnectionId,
        verb: &'static str,
        address: String,
    ) {
        let source = self.connections.get(&connection).map(|state| state.source);
        let principal = self.identity_of(connection).to_owned();
        self.audit.note(now, Seen { source, principal, verb, address, code: None });
    }

    /// What an operation may propose on behalf of `maker`: what is new counts against its quotas. `Err`: it may not.
    pub(super) fn on_behalf(&self, maker: &PrincipalName, event: Event) -> Result<Event, Denied> {
        let Event::Catalog(event) = event else { return Ok(event) };
        let may = |address: &str, quota| {
            let Some(principal) = self.principal(maker) else { return false };
            principal.rules.allows(Verb::Admin, Some(address)) || principal.quotas.of(quota) > 0
        };
        let made = match &event {
            // Dead-letter queues come with their address.
            CatalogEvent::AddressMade { address, .. } if address.is_dead_letter() => {
                return Ok(Event::Catalog(event));
            }
            CatalogEvent::AddressMade { address, .. } => Some((address, Quota::Addresses)),
            CatalogEvent::GroupDefined { address, .. } => Some((address, Quota::Groups)),
            CatalogEvent::ProducerTaken { .. } => None,
            _ => return Ok(Event::Catalog(event)),
        };
        if let Some((address, quota)) = made
            && !may(address.as_str(), quota)
        {
            return Err(Denied {
                why: "it does not exist, and making it needs that rule or a quota of its kind",
                ..Denied::rule(Verb::Admin, Some(address.as_str()))
            });
        }
        let event = AccessEvent::MadeBy { name: maker.clone(), event: Box::new(event) };
        Ok(Event::Catalog(CatalogEvent::Access(event)))
    }

    /// What an administrator wants changed about principals and tokens. `Err`: why that makes no sense.
    pub(super) fn access_event(
        &self,
        now: Now,
        request: AccessRequest,
    ) -> Result<Option<AccessEvent>, &'static str> {
        Ok(Some(match request {
            AccessRequest::Add { name, rules, quotas } => {
                if rules.0.len() > RULES_MAX {
                    return Err("too many rules for one principal");
                }
                let mut bounds = swarmmq_protocol::access::Quotas::default();
                quotas.0.iter().for_each(|(quota, value)| bounds.set(*quota, *value));
                AccessEvent::Added { name, rules, quotas: bounds }
            }
            AccessRequest::Change { name, granted, revoked } => {
                AccessEvent::Changed { name, granted, revoked }
            }
            AccessRequest::Bound { name, quotas } => AccessEvent::Bounded { name, quotas: quotas.0 },
            AccessRequest::Rotate { name, overlap } => {
                AccessEvent::Rotated { name, previous_until: now.wall.plus(overlap.min(TOKEN_TIME_MAX)) }
            }
            AccessRequest::Enable { name, enabled } => AccessEvent::Enabled { name, enabled },
            AccessRequest::Remove { name } => AccessEvent::Removed { name },
            AccessRequest::JoinToken { hash, node, expires } => {
                if expires.is_zero() {
                    return Err("a join token that expires at once lets nobody in");
                }
                let expires_at = now.wall.plus(expires.min(TOKEN_TIME_MAX));
                AccessEvent::TicketMade { hash, ticket: Ticket { node, expires_at } }
            }
            AccessRequest::List => return Ok(None),
        }))
    }

    /// All principals, for whoever administrates them.
    pub(super) fn principals(&self) -> AdminAnswer {
        let access = &self.cluster_shard().state().catalog.access;
        let one = |(name, principal): (&PrincipalName, &Principal)| PrincipalInfo {
            name: name.clone(),
            enabled: principal.enabled,
            generation: principal.generation,
            previous_until: principal.previous.map(|(_, until)| until),
            rules: principal.rules.clone(),
            quotas: principal.quotas,
            made: access.made(name),
        };
        AdminAnswer::Principals(access.principals.iter().map(one).collect())
    }

    /// Leaves out of an answer what its asker's rules do not touch.
    pub(super) fn visible(&self, connection: ConnectionId, answer: AdminAnswer) -> AdminAnswer {
        match (answer, self.rules_of(connection)) {
            (AdminAnswer::Addresses(mut addresses), Some(rules)) => {
                addresses.retain(|(address, _)| rules.touch(address.as_str()));
                AdminAnswer::Addresses(addresses)
            }
            (answer, _) => answer,
        }
    }

    /// The cluster's facts are other than before, or a token of before is accepted no longer: whoever is not to be here any
    /// more goes, and so does whoever consumes what it may not.
    pub(super) fn follow_access(&mut self, now: Now) {
        let mut ended = Vec::new();
        let mut next_look: Option<Instant> = None;
        for (id, state) in &self.connections {
            let Some(Identity::Named(name, generation)) = &state.identity else { continue };
            if state.closing {
                continue;
            }
            let principal = self.principal(name).filter(|principal| principal.enabled);
            let Some(principal) = principal else {
                ended.push((*id, Code::Unauthenticated, "the principal is not let in any more"));
                continue;
            };
            if let Some(generation) = generation
                && *generation != principal.generation
            {
                let until =
                    principal.previous.filter(|(before, _)| before == generation).map(|(_, until)| until);
                let Some(until) = until.filter(|until| now.wall < *until) else {
                    ended.push((*id, Code::Unauthenticated, "the principal has another token now"));
                    continue;
                };
                let at = now.monotonic + until.since(now.wall);
                next_look = Some(next_look.map_or(at, |other| at.min(other)));
            }
            let consumes = state.subscriptions.values().filter_map(|id| self.address_of(*id));
            if !consumes.into_iter().all(|address| principal.rules.allows(Verb::Consume, Some(address))) {
                ended.push((*id, Code::NotAllowed, "the principal may not consume this address any more"));
            }
        }
        self.next_access_look = next_look;
        for (id, code, why) in ended {
            self.send(id, 0, &Refused { code: code.number(), message: why.to_owned() });
            self.close(id);
        }
    }

    /// When [`Node::follow_access`] has something to do by itself.
    pub(super) fn access_wake(&self) -> Option<Instant> {
        self.next_access_look
    }
}

/// What an administrator's question changes, for the audit log: a verb and what it is about. `None`: it only looks.
pub(super) fn change_of(question: &AdminRequest) -> Option<(&'static str, String)> {
    Some(match question {
        AdminRequest::AddressCreate { address, .. } => ("address create", address.to_string()),
        AdminRequest::AddressSet { address, .. } => ("address set", address.to_string()),
        AdminRequest::AddressRemove { address, dry_run: false } => ("address remove", address.to_string()),
        AdminRequest::AddressPurge { address, dry_run: false } => ("address purge", address.to_string()),
        AdminRequest::GroupSeek { address, group, dry_run: false, .. } => {
            ("group seek", format!("{address} {group}"))
        }
        AdminRequest::GroupRemove { address, group, dry_run: false } => {
            ("group remove", format!("{address} {group}"))
        }
        AdminRequest::ProducerTakeOver { name } => ("producer take-over", name.to_string()),
        AdminRequest::NodeDrain { node, .. } => ("node drain", node.0.to_string()),
        AdminRequest::NodeRemove { node } => ("node remove", node.0.to_string()),
        AdminRequest::SettingSet { name, value } => ("setting set", format!("{name}={value}")),
        AdminRequest::Access(request) => match request {
            AccessRequest::Add { name, .. } => ("access add", name.to_string()),
            AccessRequest::Change { name, .. } => ("access change", name.to_string()),
            AccessRequest::Bound { name, .. } => ("access quota", name.to_string()),
            AccessRequest::Rotate { name, .. } => ("access rotate", name.to_string()),
            AccessRequest::Enable { name, enabled: true } => ("access enable", name.to_string()),
            AccessRequest::Enable { name, enabled: false } => ("access disable", name.to_string()),
            AccessRequest::Remove { name } => ("access remove", name.to_string()),
            AccessRequest::JoinToken { node, .. } => {
                ("node token", node.map_or_else(|| "*".to_owned(), |node| node.0.to_string()))
            }
            AccessRequest::List => return None,
        },
        _ => return None,
    })
}
