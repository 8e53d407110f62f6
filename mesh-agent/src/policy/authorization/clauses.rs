//! Many rules as one index.
//!
//! A clause is one `from` of one rule, together with one `to` (those about nothing but ports are one) and the rule's
//! `when`: an AND of constraints, each on one attribute of the connection or of the request. For every attribute the index knows, by value, which clauses that value satisfies and
//! which it rules out; an attribute that a clause does not constrain satisfies it. So a decision looks every attribute
//! up once and joins bit sets: its cost is a few hash lookups and one bit for each clause and attribute, whatever the
//! clauses are like, negations and wildcards included. There is no kind of policy that makes it walk through all.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap},
};

use http::HeaderName;

use super::{
    Facts,
    bits::{Draft, Hit, STRETCH, before, insert},
    ports::Ports,
    ranges::{Ranges, RangesDraft},
    strings::{StringDraft, StringIndex},
};
use crate::{
    api::{Action, Condition, ConditionKey, Operation, Pattern, Rule, Source},
    model::SpiffeId,
    policy::{HttpFacts, Trust, path},
};

/// What is decided on.
#[derive(Clone, Copy, Debug)]
pub(super) enum What<'a> {
    /// A connection that does not speak HTTP. Of clauses about requests an ALLOW never matches, and a DENY goes by its
    /// other constraints.
    Bytes,
    /// A connection whose requests are still to come: no DENY about requests matches, an ALLOW by its other constraints.
    Connection,
    Request(&'a HttpFacts<'a>),
}

impl<'a> What<'a> {
    pub(super) fn of(facts: &'a Facts<'_>) -> Self {
        match &facts.http {
            None => Self::Bytes,
            Some(request) => Self::Request(request),
        }
    }
}

/// Clauses of many policies; `of` tells whose.
#[derive(Debug, Default)]
pub(super) struct Clauses {
    of: Box<[u32]>,
    /// How many are of DENY policies; those come first.
    deny: u32,
    slots: Box<[Slot]>,
    /// Those about requests, and about paths.
    http: Box<[u64]>,
    paths: Box<[u64]>,
}

/// One constraint on one attribute. A clause with two on the same attribute (`from` and `when`) takes two slots.
#[derive(Debug)]
struct Slot {
    /// Clauses that leave the attribute alone or only exclude values of it.
    unconstrained: Box<[u64]>,
    values: Values,
}

#[derive(Debug)]
enum Values {
    Principal {
        /// Behind a trust domain of the mesh: `/ns/shop/sa/web`.
        own: StringIndex,
        /// As written.
        literal: StringIndex,
    },
    Namespace(StringIndex),
    /// `/ns/shop/sa/web`, whatever the trust domain.
    ServiceAccount(StringIndex),
    SourceIp(Ranges),
    DestinationIp(Ranges),
    Port(HashMap<u16, Hit>),
    Method(StringIndex),
    Path(StringIndex),
    Host(StringIndex),
    Header(HeaderName, StringIndex),
}

impl Clauses {
    pub(super) fn is_empty(&self) -> bool {
        self.of.is_empty()
    }

    pub(super) fn looks_at_paths(&self) -> bool {
        !self.paths.is_empty()
    }

    /// The owner of the first clause that matches.
    pub(super) fn first(&self, facts: &Facts<'_>, what: What<'_>, trust: &Trust) -> Option<u32> {
        self.stretches(facts, what, trust, |first, stretch| {
            stretch.iter().enumerate().find_map(|(word, bits)| {
                let bit = bits.trailing_zeros() as usize;
                (*bits != 0).then(|| self.of[(first + word) * 64 + bit])
            })
        })
    }

    /// Calls `each` with the owner of every clause that matches, in order; an owner may come several times.
    pub(super) fn each(
        &self,
        facts: &Facts<'_>,
        what: What<'_>,
        trust: &Trust,
        mut each: impl FnMut(u32),
    ) {
        let _: Option<()> = self.stretches(facts, what, trust, |first, stretch| {
            for (word, bits) in stretch.iter().enumerate() {
                let mut bits = *bits;
                while bits != 0 {
                    each(self.of[(first + word) * 64 + bits.trailing_zeros() as usize]);
                    bits &= bits - 1;
                }
            }
            None
        });
    }

    /// Works out which clauses match, a stretch at a time, until `found` has what it looks for.
    fn stretches<T>(
        &self,
        facts: &Facts<'_>,
        what: What<'_>,
        trust: &Trust,
        mut found: impl FnMut(usize, &[u64]) -> Option<T>,
    ) -> Option<T> {
        let words = self.of.len().div_ceil(64);
        let (mut matching, mut satisfied) = ([0; STRETCH], [0; STRETCH]);
        for first in (0..words).step_by(STRETCH) {
            let length = STRETCH.min(words - first);
            let matching = &mut matching[..length];
            matching.fill(u64::MAX);
            if first + length == words && !self.of.len().is_multiple_of(64) {
                matching[length - 1] = (1 << (self.of.len() % 64)) - 1;
            }
            self.set_aside(what, first, matching);
            for slot in &self.slots {
                match slot.values.look(what) {
                    Look::Once => {}
                    Look::Away => continue,
                    Look::AtEach(readings) => {
                        self.at_each(slot, readings, first, matching);
                        continue;
                    }
                }
                let satisfied = &mut satisfied[..length];
                satisfied.copy_from_slice(&slot.unconstrained[first..first + length]);
                slot.values.visit(facts, what, trust, &mut |hit| {
                    hit.satisfies.add_to(satisfied, first);
                    hit.rules_out.take_from(matching, first);
                });
                for (matching, satisfied) in matching.iter_mut().zip(satisfied) {
                    *matching &= *satisfied;
                }
            }
            if let Some(result) = found(first, matching) {
                return Some(result);
            }
        }
        None
    }

    /// Takes out the clauses that cannot match whatever the values are.
    fn set_aside(&self, what: What<'_>, first: usize, matching: &mut [u64]) {
        let (about, allow) = match what {
            What::Bytes => (&self.http, true),
            What::Connection => (&self.http, false),
            What::Request(request) if !request.path.is_readable() => (&self.paths, true),
            What::Request(_) => return,
        };
        // Empty, if no clause is about it.
        for (at, about) in about.iter().enumerate().skip(first).take(matching.len()) {
            let deny = before(at, self.deny);
            matching[at - first] &= !(about & if allow { !deny } else { deny });
        }
    }

    /// A value that can be read in several ways is read in each: an ALLOW has to match all of them, a DENY any.
    #[inline(never)]
    #[allow(clippy::needless_pass_by_value)] // as small as a reference, and used up by its one caller
    fn at_each(&self, slot: &Slot, readings: Readings<'_>, first: usize, matching: &mut [u64]) {
        let (Values::Path(texts) | Values::Header(_, texts)) = &slot.values else {
            return;
        };
        let length = matching.len();
        let (mut any, mut all) = ([0; STRETCH], [u64::MAX; STRETCH]);
        let (mut out_of_any, mut out_of_all) = ([0; STRETCH], [u64::MAX; STRETCH]);
        readings.each(|reading| {
            let (mut satisfied, mut ruled_out) = ([0; STRETCH], [0; STRETCH]);
            satisfied[..length].copy_from_slice(&slot.unconstrained[first..first + length]);
            texts.visit(reading, &mut |hit| {
                hit.satisfies.add_to(&mut satisfied[..length], first);
                hit.rules_out.add_to(&mut ruled_out[..length], first);
            });
            for at in 0..length {
                any[at] |= satisfied[at];
                all[at] &= satisfied[at];
                out_of_any[at] |= ruled_out[at];
                out_of_all[at] &= ruled_out[at];
            }
        });
        for (at, matching) in matching.iter_mut().enumerate() {
            let deny = before(first + at, self.deny);
            let satisfied = (any[at] & deny) | (all[at] & !deny);
            let ruled_out = (out_of_all[at] & deny) | (out_of_any[at] & !deny);
            *matching &= satisfied & !ruled_out;
        }
    }
}

/// How a slot is looked at.
enum Look<'a> {
    Once,
    /// There is nothing to see; what follows from that is in `Clauses::set_aside`.
    Away,
    AtEach(Readings<'a>),
}

/// The ways to read a value, more than one.
enum Readings<'a> {
    Path(&'a path::RequestPath<'a>),
    /// The lines of one header: servers take the first of them, or the last, or all.
    Header(http::header::GetAll<'a, http::HeaderValue>),
}

impl Readings<'_> {
    fn each(&self, mut each: impl FnMut(&[u8])) {
        match self {
            Self::Path(path) => path.readings().for_each(|reading| each(reading.as_bytes())),
            Self::Header(lines) => lines.iter().for_each(|line| each(line.as_bytes())),
        }
    }
}

impl Values {
    fn look<'a>(&self, what: What<'a>) -> Look<'a> {
        let request = match (self, what) {
            (Self::Method(_) | Self::Path(_) | Self::Host(_) | Self::Header(..), what) => {
                match what {
                    What::Request(request) => request,
                    What::Bytes | What::Connection => return Look::Away,
                }
            }
            _ => return Look::Once,
        };
        match self {
            Self::Path(_) if !request.path.is_readable() => Look::Away,
            Self::Path(_) if request.path.is_ambiguous() => {
                Look::AtEach(Readings::Path(request.path))
            }
            Self::Header(name, _) => {
                let lines = request.headers.get_all(name);
                match lines.iter().nth(1) {
                    Some(_) => Look::AtEach(Readings::Header(lines)),
                    None => Look::Once,
                }
            }
            _ => Look::Once,
        }
    }

    /// Calls `each` for everything that the connection's or the request's value matches. A client without identity has no
    /// value in the attributes of the source's identity: it satisfies no constraint there and is ruled out by none. The
    /// same holds for a header that is not there.
    fn visit(&self, facts: &Facts<'_>, what: What<'_>, trust: &Trust, each: &mut impl FnMut(&Hit)) {
        let request = match what {
            What::Request(request) => Some(request),
            What::Bytes | What::Connection => None,
        };
        match self {
            Self::Principal { own, literal } => {
                if let Some(source) = facts.source {
                    if trust.is_own(source.trust_domain().as_str()) {
                        own.visit(account(source), each);
                    }
                    literal.visit(source.principal(), each);
                }
            }
            Self::Namespace(namespaces) => {
                if let Some(source) = facts.source {
                    namespaces.visit(source.namespace(), each);
                }
            }
            Self::ServiceAccount(accounts) => {
                if let Some(source) = facts.source {
                    accounts.visit(account(source), each);
                }
            }
            Self::SourceIp(ranges) => ranges.visit(facts.source_ip, each),
            Self::DestinationIp(ranges) => ranges.visit(facts.destination_ip, each),
            Self::Port(ports) => {
                if let Some(hit) = ports.get(&facts.destination_port) {
                    each(hit);
                }
            }
            Self::Method(methods) => {
                if let Some(request) = request {
                    methods.visit(request.method, each);
                }
            }
            Self::Path(paths) => {
                if let Some(request) = request {
                    request
                        .path
                        .readings()
                        .for_each(|path| paths.visit(path, each));
                }
            }
            Self::Host(hosts) => {
                if let Some(request) = request {
                    hosts.visit(request.host.full(), each);
                    if let Some(bare) = request.host.bare() {
                        hosts.visit(bare, each);
                    }
                }
            }
            Self::Header(name, values) => {
                if let Some(request) = request
                    && let Some(value) = request.headers.get(name)
                {
                    values.visit(value.as_bytes(), each);
                }
            }
        }
    }
}

/// `/ns/shop/sa/web`
fn account(id: &SpiffeId) -> &str {
    let trust_domain = id.trust_domain().as_str().len();
    id.principal().get(trust_domain..).unwrap_or_default()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Attribute {
    Principal,
    Namespace,
    ServiceAccount,
    SourceIp,
    DestinationIp,
    Port,
    Method,
    Path,
    Host,
    /// By its place in `Builder::headers`.
    Header(u32),
}

impl Attribute {
    fn is_of_requests(self) -> bool {
        matches!(
            self,
            Self::Method | Self::Path | Self::Host | Self::Header(_)
        )
    }
}

#[derive(Debug)]
enum ValuesDraft {
    Principal(StringDraft, StringDraft),
    Text(StringDraft),
    Ip(RangesDraft),
    Port(HashMap<u16, Draft>),
}

#[derive(Debug)]
struct SlotDraft {
    constrained: Vec<u32>,
    values: ValuesDraft,
}

/// `Clauses` being made.
#[derive(Debug)]
pub(super) struct Builder<'t> {
    trust: &'t Trust,
    of: Vec<u32>,
    deny: u32,
    slots: BTreeMap<(Attribute, usize), SlotDraft>,
    headers: Vec<HeaderName>,
    http: Vec<u32>,
    paths: Vec<u32>,
}

impl<'t> Builder<'t> {
    pub(super) fn new(trust: &'t Trust) -> Self {
        Self {
            trust,
            of: Vec::new(),
            deny: 0,
            slots: BTreeMap::new(),
            headers: Vec::new(),
            http: Vec::new(),
            paths: Vec::new(),
        }
    }

    /// Adds the clauses of a rule of policy `owner`, which is in `namespace`. DENY before ALLOW.
    pub(super) fn add(&mut self, owner: u32, action: Action, namespace: &str, rule: &Rule) {
        let sources: &mut dyn Iterator<Item = _> = match rule.from.is_empty() {
            true => &mut std::iter::once(None),
            false => &mut rule.from.iter().map(|from| Some(&from.source)),
        };
        let ports = Ports::of(rule);
        for source in sources {
            // Those about nothing but ports are one.
            if rule.to.is_empty() || ports.is_some() {
                self.add_clause(owner, namespace, source, |clause| {
                    if let Some(ports) = &ports {
                        clause.only_ports(ports);
                    }
                    clause.conditions(&rule.when, namespace);
                });
            }
            let operations = rule.to.iter().map(|to| &to.operation);
            for operation in operations.filter(|operation| operation.needs_http()) {
                self.add_clause(owner, namespace, source, |clause| {
                    clause.operation(operation);
                    clause.conditions(&rule.when, namespace);
                });
            }
        }
        if action == Action::Deny {
            self.deny = self.of.len() as u32;
        }
    }

    fn add_clause(
        &mut self,
        owner: u32,
        namespace: &str,
        source: Option<&Source>,
        rest: impl FnOnce(&mut Clause<'_, '_>),
    ) {
        let mut clause = Clause {
            id: self.of.len() as u32,
            constraints: Vec::new(),
            builder: self,
        };
        if let Some(source) = source {
            clause.source(source, namespace);
        }
        rest(&mut clause);
        self.of.push(owner);
    }

    pub(super) fn finish(self) -> Clauses {
        let words = self.of.len().div_ceil(64);
        let set = |ids: &[u32]| {
            let mut bits = vec![0; if ids.is_empty() { 0 } else { words }].into_boxed_slice();
            ids.iter().for_each(|id| insert(&mut bits, *id));
            bits
        };
        let (http, paths) = (set(&self.http), set(&self.paths));
        let slots = self.slots.into_iter().map(|((attribute, _), draft)| {
            let mut unconstrained = vec![u64::MAX; words].into_boxed_slice();
            for id in draft.constrained {
                unconstrained[id as usize / 64] &= !(1 << (id % 64));
            }
            let values = match (attribute, draft.values) {
                (Attribute::Method, ValuesDraft::Text(texts)) => {
                    Values::Method(texts.finish(words))
                }
                (Attribute::Path, ValuesDraft::Text(texts)) => Values::Path(texts.finish(words)),
                (Attribute::Host, ValuesDraft::Text(texts)) => Values::Host(texts.finish(words)),
                (Attribute::Header(at), ValuesDraft::Text(texts)) => {
                    Values::Header(self.headers[at as usize].clone(), texts.finish(words))
                }
                (Attribute::DestinationIp, ValuesDraft::Ip(ranges)) => {
                    Values::DestinationIp(ranges.finish(words))
                }
                (Attribute::ServiceAccount, ValuesDraft::Text(texts)) => {
                    Values::ServiceAccount(texts.finish(words))
                }
                (_, ValuesDraft::Principal(own, literal)) => Values::Principal {
                    own: own.finish(words),
                    literal: literal.finish(words),
                },
                (_, ValuesDraft::Text(texts)) => Values::Namespace(texts.finish(words)),
                (_, ValuesDraft::Ip(ranges)) => Values::SourceIp(ranges.finish(words)),
                (_, ValuesDraft::Port(ports)) => Values::Port(
                    ports
                        .into_iter()
                        .map(|(port, draft)| (port, draft.finish(words)))
                        .collect(),
                ),
            };
            Slot {
                unconstrained,
                values,
            }
        });
        Clauses {
            slots: slots.collect(),
            deny: self.deny,
            of: self.of.into(),
            http,
            paths,
        }
    }
}

/// `service-account` alone is one of the policy's namespace.
pub(super) fn qualified(accounts: &[String], namespace: &str) -> Vec<String> {
    accounts
        .iter()
        .map(|account| {
            let (namespace, name) = account.split_once('/').unwrap_or((namespace, account));
            format!("/ns/{namespace}/sa/{name}")
        })
        .collect()
}

struct Clause<'b, 't> {
    id: u32,
    /// Positive constraints so far, by attribute.
    constraints: Vec<Attribute>,
    builder: &'b mut Builder<'t>,
}

impl Clause<'_, '_> {
    fn source(&mut self, source: &Source, namespace: &str) {
        let accounts = |list: &[String]| qualified(list, namespace);
        self.texts(Attribute::Principal, &source.principals, true);
        self.texts(Attribute::Principal, &source.not_principals, false);
        self.texts(Attribute::Namespace, &source.namespaces, true);
        self.texts(Attribute::Namespace, &source.not_namespaces, false);
        let positive = accounts(&source.service_accounts);
        self.texts(Attribute::ServiceAccount, &positive, true);
        let negative = accounts(&source.not_service_accounts);
        self.texts(Attribute::ServiceAccount, &negative, false);
        let (blocks, not) = (&source.ip_blocks, &source.not_ip_blocks);
        self.ips(Attribute::SourceIp, blocks.iter().map(|c| c.0), true);
        self.ips(Attribute::SourceIp, not.iter().map(|c| c.0), false);
    }

    fn operation(&mut self, operation: &Operation) {
        self.only_ports(&Ports::of_one(operation));
        self.texts(Attribute::Method, &operation.methods, true);
        self.texts(Attribute::Method, &operation.not_methods, false);
        self.texts(Attribute::Path, &operation.paths, true);
        self.texts(Attribute::Path, &operation.not_paths, false);
        self.texts(Attribute::Host, &operation.hosts, true);
        self.texts(Attribute::Host, &operation.not_hosts, false);
    }

    fn only_ports(&mut self, ports: &Ports) {
        match ports {
            Ports::In(ports) => self.ports(ports.iter().copied(), true),
            Ports::NotIn(ports) if ports.is_empty() => {}
            Ports::NotIn(ports) => self.ports(ports.iter().copied(), false),
        }
    }

    /// The slot for another constraint. What excludes values can share one; what demands one cannot.
    fn slot(&mut self, attribute: Attribute, positive: bool) -> &mut SlotDraft {
        let nth = match positive {
            true => {
                let before = self
                    .constraints
                    .iter()
                    .filter(|known| **known == attribute)
                    .count();
                self.constraints.push(attribute);
                before
            }
            false => 0,
        };
        let slot = self
            .builder
            .slots
            .entry((attribute, nth))
            .or_insert_with(|| SlotDraft {
                constrained: Vec::new(),
                values: match attribute {
                    Attribute::Principal => {
                        ValuesDraft::Principal(StringDraft::default(), StringDraft::default())
                    }
                    Attribute::Namespace
                    | Attribute::ServiceAccount
                    | Attribute::Method
                    | Attribute::Path
                    | Attribute::Host
                    | Attribute::Header(_) => ValuesDraft::Text(StringDraft::default()),
                    Attribute::SourceIp | Attribute::DestinationIp => {
                        ValuesDraft::Ip(RangesDraft::default())
                    }
                    Attribute::Port => ValuesDraft::Port(HashMap::new()),
                },
            });
        if positive {
            slot.constrained.push(self.id);
        }
        slot
    }

    /// An empty list is no constraint.
    fn texts(&mut self, attribute: Attribute, texts: &[String], positive: bool) {
        if texts.is_empty() {
            return;
        }
        let (id, trust) = (self.id, self.builder.trust);
        if attribute.is_of_requests() {
            self.builder.http.push(id);
        }
        if attribute == Attribute::Path {
            self.builder.paths.push(id);
        }
        let slot = self.slot(attribute, positive);
        for text in texts {
            let text = comparable(attribute, text);
            let pattern = Pattern::parse(&text);
            let draft = match &mut slot.values {
                ValuesDraft::Principal(own, literal) => match behind_own(pattern, trust) {
                    Some(pattern) => own.entry(pattern),
                    None => literal.entry(pattern),
                },
                ValuesDraft::Text(texts) => texts.entry(pattern),
                ValuesDraft::Ip(_) | ValuesDraft::Port(_) => continue,
            };
            draft.add(id, positive);
        }
    }

    fn ips(
        &mut self,
        attribute: Attribute,
        mut ranges: impl ExactSizeIterator<Item = ipnet::IpNet>,
        positive: bool,
    ) {
        if ranges.len() == 0 {
            return;
        }
        let id = self.id;
        if let ValuesDraft::Ip(draft) = &mut self.slot(attribute, positive).values {
            ranges
                .by_ref()
                .for_each(|net| draft.entry(net).add(id, positive));
        }
    }

    /// Here an empty list is one: no port satisfies it.
    fn ports(&mut self, ports: impl Iterator<Item = u16>, positive: bool) {
        let id = self.id;
        if let ValuesDraft::Port(draft) = &mut self.slot(Attribute::Port, positive).values {
            for port in ports {
                draft.entry(port).or_default().add(id, positive);
            }
        }
    }

    fn conditions(&mut self, conditions: &[Condition], namespace: &str) {
        for condition in conditions {
            self.condition(condition, namespace);
        }
    }

    fn condition(&mut self, condition: &Condition, namespace: &str) {
        // The key and the values were checked when the policy was read.
        let Ok(key) = condition.key.parse::<ConditionKey>() else {
            return;
        };
        for (values, positive) in [(&condition.values, true), (&condition.not_values, false)] {
            let ranges = |values: &[String]| -> Vec<ipnet::IpNet> {
                let parsed = values
                    .iter()
                    .filter_map(|v| v.parse::<crate::api::Cidr>().ok());
                parsed.map(|cidr| cidr.0).collect()
            };
            match &key {
                _ if values.is_empty() => {}
                ConditionKey::Header(name) => {
                    let headers = &mut self.builder.headers;
                    let at = headers.iter().position(|known| known == name);
                    let at = at.unwrap_or_else(|| {
                        headers.push(name.clone());
                        headers.len() - 1
                    });
                    self.texts(Attribute::Header(at as u32), values, positive);
                }
                ConditionKey::SourcePrincipal => self.texts(Attribute::Principal, values, positive),
                ConditionKey::SourceNamespace => self.texts(Attribute::Namespace, values, positive),
                ConditionKey::SourceServiceAccount => {
                    let accounts = qualified(values, namespace);
                    self.texts(Attribute::ServiceAccount, &accounts, positive);
                }
                ConditionKey::SourceIp => {
                    self.ips(Attribute::SourceIp, ranges(values).into_iter(), positive);
                }
                ConditionKey::DestinationIp => {
                    self.ips(
                        Attribute::DestinationIp,
                        ranges(values).into_iter(),
                        positive,
                    );
                }
                ConditionKey::DestinationPort => {
                    self.ports(values.iter().filter_map(|v| v.parse().ok()), positive);
                }
            }
        }
    }
}

/// A pattern in the form in which values are compared.
pub(super) fn comparable(attribute: Attribute, text: &str) -> Cow<'_, str> {
    match attribute {
        Attribute::Host => text.to_ascii_lowercase().into(),
        Attribute::Path => path::plain_pattern(text).map_or(Cow::Borrowed(text), Cow::Owned),
        _ => text.into(),
    }
}

/// What of the pattern stands behind a trust domain of the mesh, if it names one.
fn behind_own<'p>(pattern: Pattern<'p>, trust: &Trust) -> Option<Pattern<'p>> {
    let rest = |text: &'p str| {
        let slash = text.find('/')?;
        trust.is_own(&text[..slash]).then(|| &text[slash..])
    };
    match pattern {
        Pattern::Exact(text) => rest(text).map(Pattern::Exact),
        Pattern::Prefix(text) => rest(text).map(Pattern::Prefix),
        Pattern::Suffix(_) | Pattern::Any => None,
    }
}
