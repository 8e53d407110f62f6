//! Many rules as one index.
//!
//! A clause is one `from` of one rule, together with the rule's `to` and `when`: an AND of constraints, each on one
//! attribute of the connection. For every attribute the index knows, by value, which clauses that value satisfies and
//! which it rules out; an attribute that a clause does not constrain satisfies it. So a decision looks every attribute
//! up once and joins bit sets: its cost is a few hash lookups and one bit for each clause and attribute, whatever the
//! clauses are like, negations and wildcards included. There is no kind of policy that makes it walk through all.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::{
    Facts,
    bits::{Draft, Hit, STRETCH},
    ranges::{Ranges, RangesDraft},
    strings::{StringDraft, StringIndex},
};
use crate::{
    api::{Condition, ConditionKey, Operation, Pattern, Rule},
    model::SpiffeId,
    policy::Trust,
};

/// Clauses of many policies; `of` tells whose.
#[derive(Debug, Default)]
pub(super) struct Clauses {
    of: Box<[u32]>,
    slots: Box<[Slot]>,
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
}

impl Clauses {
    pub(super) fn is_empty(&self) -> bool {
        self.of.is_empty()
    }

    /// The owner of the first clause that matches.
    pub(super) fn first(&self, facts: &Facts<'_>, trust: &Trust) -> Option<u32> {
        self.stretches(facts, trust, |first, stretch| {
            stretch.iter().enumerate().find_map(|(word, bits)| {
                let bit = bits.trailing_zeros() as usize;
                (*bits != 0).then(|| self.of[(first + word) * 64 + bit])
            })
        })
    }

    /// Calls `each` with the owner of every clause that matches, in order; an owner may come several times.
    pub(super) fn each(&self, facts: &Facts<'_>, trust: &Trust, mut each: impl FnMut(u32)) {
        let _: Option<()> = self.stretches(facts, trust, |first, stretch| {
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
            for slot in &self.slots {
                let satisfied = &mut satisfied[..length];
                satisfied.copy_from_slice(&slot.unconstrained[first..first + length]);
                slot.values.visit(facts, trust, &mut |hit| {
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
}

impl Values {
    /// Calls `each` for everything that the connection's value matches. A client without identity has no value in the
    /// attributes of the source's identity: it satisfies no constraint there and is ruled out by none.
    fn visit(&self, facts: &Facts<'_>, trust: &Trust, each: &mut impl FnMut(&Hit)) {
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
        }
    }
}

/// `/ns/shop/sa/web`
fn account(id: &SpiffeId) -> &str {
    let trust_domain = id.trust_domain().as_str().len();
    id.principal().get(trust_domain..).unwrap_or_default()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Attribute {
    Principal,
    Namespace,
    ServiceAccount,
    SourceIp,
    DestinationIp,
    Port,
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
    slots: BTreeMap<(Attribute, usize), SlotDraft>,
}

impl<'t> Builder<'t> {
    pub(super) fn new(trust: &'t Trust) -> Self {
        Self {
            trust,
            of: Vec::new(),
            slots: BTreeMap::new(),
        }
    }

    /// Adds the clauses of a rule of policy `owner`, which is in `namespace`.
    pub(super) fn add(&mut self, owner: u32, namespace: &str, rule: &Rule) {
        let ports = Ports::of(rule);
        let any_source = [None];
        let sources: &mut dyn Iterator<Item = _> = match rule.from.is_empty() {
            true => &mut any_source.into_iter(),
            false => &mut rule.from.iter().map(|from| Some(&from.source)),
        };
        for source in sources {
            let mut clause = Clause {
                id: self.of.len() as u32,
                constraints: Vec::new(),
                builder: self,
            };
            if let Some(source) = source {
                let accounts = |list: &[String]| qualified(list, namespace);
                clause.texts(Attribute::Principal, &source.principals, true);
                clause.texts(Attribute::Principal, &source.not_principals, false);
                clause.texts(Attribute::Namespace, &source.namespaces, true);
                clause.texts(Attribute::Namespace, &source.not_namespaces, false);
                let positive = accounts(&source.service_accounts);
                clause.texts(Attribute::ServiceAccount, &positive, true);
                let negative = accounts(&source.not_service_accounts);
                clause.texts(Attribute::ServiceAccount, &negative, false);
                clause.ips(
                    Attribute::SourceIp,
                    source.ip_blocks.iter().map(|c| c.0),
                    true,
                );
                clause.ips(
                    Attribute::SourceIp,
                    source.not_ip_blocks.iter().map(|c| c.0),
                    false,
                );
            }
            match &ports {
                Some(Ports::In(ports)) => clause.ports(ports.iter().copied(), true),
                Some(Ports::NotIn(ports)) => clause.ports(ports.iter().copied(), false),
                None => {}
            }
            for condition in &rule.when {
                clause.condition(condition, namespace);
            }
            self.of.push(owner);
        }
    }

    pub(super) fn finish(self) -> Clauses {
        let words = self.of.len().div_ceil(64);
        let slots = self.slots.into_iter().map(|((attribute, _), draft)| {
            let mut unconstrained = vec![u64::MAX; words].into_boxed_slice();
            for id in draft.constrained {
                unconstrained[id as usize / 64] &= !(1 << (id % 64));
            }
            let values = match (attribute, draft.values) {
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
            of: self.of.into(),
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
                    Attribute::Namespace | Attribute::ServiceAccount => {
                        ValuesDraft::Text(StringDraft::default())
                    }
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
        let slot = self.slot(attribute, positive);
        for text in texts {
            let pattern = Pattern::parse(text);
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
            match key {
                _ if values.is_empty() => {}
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

/// The ports that the operations of a rule match together: as long as nothing but ports is looked at, any number of
/// operations is one set of ports, or all but a set.
#[derive(Debug, PartialEq, Eq)]
enum Ports {
    In(BTreeSet<u16>),
    NotIn(BTreeSet<u16>),
}

impl Ports {
    /// `None` without operations.
    fn of(rule: &Rule) -> Option<Self> {
        rule.to
            .iter()
            .map(|to| Self::of_one(&to.operation))
            .reduce(Self::or)
    }

    fn of_one(operation: &Operation) -> Self {
        let not: BTreeSet<u16> = operation.not_ports.iter().map(|port| port.0).collect();
        if operation.ports.is_empty() {
            return Self::NotIn(not);
        }
        let ports = operation.ports.iter().map(|port| port.0);
        Self::In(ports.filter(|port| !not.contains(port)).collect())
    }

    fn or(self, other: Self) -> Self {
        match (self, other) {
            (Self::In(mut a), Self::In(b)) => {
                a.extend(b);
                Self::In(a)
            }
            (Self::In(a), Self::NotIn(b)) | (Self::NotIn(b), Self::In(a)) => Self::NotIn(&b - &a),
            (Self::NotIn(a), Self::NotIn(b)) => Self::NotIn(&a & &b),
        }
    }
}
