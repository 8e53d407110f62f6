//! Why a policy matches a connection or a request, or does not, in words. It reads the policy as it was written, for one connection
//! at a time; a property test holds it to what `Authorizer::decide` says.

use super::{
    Facts,
    clauses::{Attribute, comparable, qualified},
    layer::Policy,
};
use crate::{
    api::{Action, Cidr, Condition, ConditionKey, Operation, Pattern, Port, Rule, Source},
    model::{ResourceName, SpiffeId},
    policy::{HttpFacts, Trust},
};

/// One policy that was looked at for a decision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Looked {
    pub policy: ResourceName,
    pub action: Action,
    pub dry_run: bool,
    pub matched: bool,
    /// Which rule matches, or what keeps each from it.
    pub why: String,
}

/// Rules and values that a reason names; more are counted.
const NAMED: usize = 4;

pub(super) fn look(policy: &Policy, facts: &Facts<'_>, trust: &Trust) -> Looked {
    let look = Look {
        facts,
        trust,
        namespace: &policy.name.namespace,
        action: policy.spec.action,
    };
    let rules = &policy.spec.rules;
    let (matched, why) = look.rules(rules);
    Looked {
        policy: policy.name.clone(),
        action: policy.spec.action,
        dry_run: policy.spec.dry_run,
        matched,
        why,
    }
}

struct Look<'a> {
    facts: &'a Facts<'a>,
    trust: &'a Trust,
    namespace: &'a str,
    action: Action,
}

/// What fits, or what does not.
type Outcome = Result<Vec<String>, String>;

impl Look<'_> {
    fn rules(&self, rules: &[Rule]) -> (bool, String) {
        if rules.is_empty() {
            return (false, "it has no rules, so it matches nothing".to_owned());
        }
        let mut misses = Vec::new();
        for (index, rule) in rules.iter().enumerate() {
            let number = match rules.len() {
                1 => String::new(),
                _ => format!("rule {}: ", index + 1),
            };
            match self.rule(rule) {
                Ok(fits) if fits.is_empty() => {
                    return (true, format!("{number}the empty rule matches everything"));
                }
                Ok(fits) => return (true, format!("{number}{}", fits.join(", "))),
                Err(miss) => misses.push(format!("{number}{miss}")),
            }
        }
        (false, few(&misses, "; ", "rules"))
    }

    fn rule(&self, rule: &Rule) -> Outcome {
        let mut fits = Vec::new();
        let sources = rule.from.iter().map(|from| self.source(&from.source));
        fits.extend(one_of(sources, "sources")?);
        let operations = rule.to.iter().map(|to| self.operation(&to.operation));
        fits.extend(one_of(operations, "operations")?);
        for condition in &rule.when {
            fits.extend(self.condition(condition)?);
        }
        Ok(fits)
    }

    fn source(&self, source: &Source) -> Outcome {
        let mut fits = Vec::new();
        fits.extend(self.principal(&source.principals, true)?);
        fits.extend(self.principal(&source.not_principals, false)?);
        fits.extend(self.client_namespace(&source.namespaces, true)?);
        fits.extend(self.client_namespace(&source.not_namespaces, false)?);
        fits.extend(self.account(&source.service_accounts, true)?);
        fits.extend(self.account(&source.not_service_accounts, false)?);
        let ip = self.facts.source_ip;
        fits.extend(self.ip("source address", ip, &source.ip_blocks, true)?);
        fits.extend(self.ip("source address", ip, &source.not_ip_blocks, false)?);
        Ok(fits)
    }

    fn operation(&self, operation: &Operation) -> Outcome {
        let mut fits = Vec::new();
        fits.extend(self.port(&operation.ports, true)?);
        fits.extend(self.port(&operation.not_ports, false)?);
        fits.extend(self.method(&operation.methods, true)?);
        fits.extend(self.method(&operation.not_methods, false)?);
        fits.extend(self.path(&operation.paths, true)?);
        fits.extend(self.path(&operation.not_paths, false)?);
        fits.extend(self.host(&operation.hosts, true)?);
        fits.extend(self.host(&operation.not_hosts, false)?);
        Ok(fits)
    }

    fn condition(&self, condition: &Condition) -> Outcome {
        let mut fits = Vec::new();
        // The key and the values were checked when the policy was read.
        let Ok(key) = condition.key.parse::<ConditionKey>() else {
            return Ok(fits);
        };
        for (values, positive) in [(&condition.values, true), (&condition.not_values, false)] {
            let ranges = || -> Vec<Cidr> { values.iter().filter_map(|v| v.parse().ok()).collect() };
            let facts = self.facts;
            fits.extend(match &key {
                ConditionKey::Header(name) => self.header(name, values, positive)?,
                ConditionKey::SourcePrincipal => self.principal(values, positive)?,
                ConditionKey::SourceNamespace => self.client_namespace(values, positive)?,
                ConditionKey::SourceServiceAccount => self.account(values, positive)?,
                ConditionKey::SourceIp => {
                    self.ip("source address", facts.source_ip, &ranges(), positive)?
                }
                ConditionKey::DestinationIp => self.ip(
                    "destination address",
                    facts.destination_ip,
                    &ranges(),
                    positive,
                )?,
                ConditionKey::DestinationPort => {
                    let ports: Vec<Port> = values.iter().filter_map(|v| v.parse().ok()).collect();
                    self.port(&ports, positive)?
                }
            });
        }
        Ok(fits)
    }

    fn principal(&self, patterns: &[String], positive: bool) -> Outcome {
        let matches = |pattern: &str, source: &SpiffeId| {
            let pattern = Pattern::parse(pattern);
            pattern.matches(source.principal())
                || self.trust.is_own(source.trust_domain().as_str())
                    && self.of_own_domains(source).any(|principal| {
                        names_own_domain(pattern, self.trust) && pattern.matches(&principal)
                    })
        };
        self.identity(
            "principal",
            patterns,
            positive,
            |source| source.principal().to_owned(),
            matches,
        )
    }

    /// The principal in each of the mesh's trust domains.
    fn of_own_domains(&self, source: &SpiffeId) -> impl Iterator<Item = String> {
        let account = format!("/ns/{}/sa/{}", source.namespace(), source.service_account());
        let domains = std::iter::once(&self.trust.domain).chain(&self.trust.aliases);
        domains.map(move |domain| format!("{domain}{account}"))
    }

    fn client_namespace(&self, patterns: &[String], positive: bool) -> Outcome {
        let matches =
            |pattern: &str, source: &SpiffeId| Pattern::parse(pattern).matches(source.namespace());
        self.identity(
            "namespace",
            patterns,
            positive,
            |source| source.namespace().to_owned(),
            matches,
        )
    }

    fn account(&self, accounts: &[String], positive: bool) -> Outcome {
        let matches = |account: &str, source: &SpiffeId| {
            let wanted = qualified(&[account.to_owned()], self.namespace);
            let own = format!("/ns/{}/sa/{}", source.namespace(), source.service_account());
            wanted.contains(&own)
        };
        self.identity(
            "service account",
            accounts,
            positive,
            |source| format!("{}/{}", source.namespace(), source.service_account()),
            matches,
        )
    }

    /// A list about the client's identity.
    fn identity(
        &self,
        what: &str,
        list: &[String],
        positive: bool,
        show: impl Fn(&SpiffeId) -> String,
        matches: impl Fn(&str, &SpiffeId) -> bool,
    ) -> Outcome {
        if list.is_empty() {
            return Ok(Vec::new());
        }
        match self.facts.source {
            None if positive => Err(format!(
                "the client has no identity (it came without a tunnel), and {what} {} needs one",
                few(list, " or ", "")
            )),
            None => Ok(vec![format!(
                "no identity, so not {what} {}",
                few(list, " or ", "")
            )]),
            Some(source) => {
                let hit = list.iter().find(|entry| matches(entry, source));
                verdict(what, &show(source), list, hit, positive)
            }
        }
    }

    fn ip(&self, what: &str, ip: std::net::IpAddr, list: &[Cidr], positive: bool) -> Outcome {
        let ip = ip.to_canonical();
        let hit = list.iter().find(|range| range.0.contains(&ip));
        verdict(what, &ip.to_string(), list, hit, positive)
    }

    fn port(&self, list: &[Port], positive: bool) -> Outcome {
        let port = self.facts.destination_port;
        let hit = list.iter().find(|entry| entry.0 == port);
        verdict("port", &port.to_string(), list, hit, positive)
    }
}

/// About requests.
impl Look<'_> {
    /// What a list about requests comes to where none is looked at.
    fn request(&self, what: &str, list: &[String]) -> Result<&HttpFacts<'_>, Outcome> {
        match (&self.facts.http, self.action) {
            _ if list.is_empty() => Err(Ok(Vec::new())),
            (Some(request), _) => Ok(request),
            (None, Action::Allow) => Err(Err(format!(
                "the connection does not speak HTTP, and {what} {} needs a request",
                few(list, " or ", "")
            ))),
            (None, Action::Deny) => Err(Ok(vec![format!("no HTTP, so whatever the {what}")])),
        }
    }

    fn method(&self, list: &[String], positive: bool) -> Outcome {
        let request = match self.request("method", list) {
            Ok(request) => request,
            Err(outcome) => return outcome,
        };
        self.each_reading("method", &[request.method.as_bytes()], list, positive)
    }

    fn path(&self, list: &[String], positive: bool) -> Outcome {
        let request = match self.request("path", list) {
            Ok(request) => request,
            Err(outcome) => return outcome,
        };
        if !request.path.is_readable() {
            return match self.action {
                Action::Allow => Err("the path could mean anything (see docs/security.md)".into()),
                Action::Deny => Ok(vec!["a path that could mean anything".to_owned()]),
            };
        }
        let list: Vec<String> = list
            .iter()
            .map(|text| comparable(Attribute::Path, text).into_owned())
            .collect();
        let readings: Vec<&[u8]> = request.path.readings().map(str::as_bytes).collect();
        self.each_reading("path", &readings, &list, positive)
    }

    fn host(&self, list: &[String], positive: bool) -> Outcome {
        let request = match self.request("host", list) {
            Ok(request) => request,
            Err(outcome) => return outcome,
        };
        let (full, bare) = (request.host.full(), request.host.bare());
        let hit = list.iter().find(|text| {
            let text = comparable(Attribute::Host, text);
            let pattern = Pattern::parse(&text);
            pattern.matches(full) || bare.is_some_and(|bare| pattern.matches(bare))
        });
        verdict("host", full, list, hit, positive)
    }

    fn header(&self, name: &http::HeaderName, list: &[String], positive: bool) -> Outcome {
        let what = format!("header {name}");
        let request = match self.request(&what, list) {
            Ok(request) => request,
            Err(outcome) => return outcome,
        };
        let lines = request.headers.get_all(name).iter();
        let lines: Vec<&[u8]> = lines.map(http::HeaderValue::as_bytes).collect();
        match (lines.is_empty(), positive) {
            (true, true) => Err(format!("there is no {what}")),
            (true, false) => Ok(vec![format!("no {what}")]),
            (false, _) => self.each_reading(&what, &lines, list, positive),
        }
    }

    /// Of a value that can be read in several ways an ALLOW wants all to fit, a DENY one.
    fn each_reading(
        &self,
        what: &str,
        readings: &[&[u8]],
        list: &[String],
        positive: bool,
    ) -> Outcome {
        let mut outcomes = readings.iter().map(|reading| {
            let hit = list.iter().find(|text| match Pattern::parse(text) {
                Pattern::Any => true,
                Pattern::Exact(text) => *reading == text.as_bytes(),
                Pattern::Prefix(text) => reading.starts_with(text.as_bytes()),
                Pattern::Suffix(text) => reading.ends_with(text.as_bytes()),
            });
            verdict(what, &String::from_utf8_lossy(reading), list, hit, positive)
        });
        let worst = match self.action {
            Action::Allow => outcomes.clone().find(Result::is_err),
            Action::Deny => outcomes.clone().find(Result::is_ok),
        };
        let outcome = worst.or_else(|| outcomes.next());
        match (outcome, readings.len()) {
            (None, _) => Ok(Vec::new()),
            (Some(outcome), 0 | 1) => outcome,
            (Some(Ok(fits)), _) => Ok(fits),
            (Some(Err(miss)), _) => Err(format!("{miss} (one way to read it)")),
        }
    }
}

fn names_own_domain(pattern: Pattern<'_>, trust: &Trust) -> bool {
    match pattern {
        Pattern::Exact(text) | Pattern::Prefix(text) => text
            .split_once('/')
            .is_some_and(|(domain, _)| trust.is_own(domain)),
        Pattern::Suffix(_) | Pattern::Any => false,
    }
}

/// `hit` is the entry that the value matches.
fn verdict<T: ToString>(
    what: &str,
    value: &str,
    list: &[T],
    hit: Option<&T>,
    positive: bool,
) -> Outcome {
    if list.is_empty() {
        return Ok(Vec::new());
    }
    let listed = few(list, ", ", "");
    match (hit.map(ToString::to_string), positive) {
        (Some(entry), true) if entry == value => Ok(vec![format!("{what} {value}")]),
        (Some(entry), true) => Ok(vec![format!("{what} {value} ({entry})")]),
        (None, true) if list.len() == 1 => Err(format!("{what} {value} is not {listed}")),
        (None, true) => Err(format!("{what} {value} is none of {listed}")),
        (Some(entry), false) => Err(format!("{what} {value} is excluded by {entry}")),
        (None, false) => Ok(vec![format!("{what} {value}, not {listed}")]),
    }
}

/// The first alternative that fits; without any, everything does.
fn one_of(alternatives: impl ExactSizeIterator<Item = Outcome>, what: &str) -> Outcome {
    let mut misses = Vec::new();
    for alternative in alternatives {
        match alternative {
            Ok(fits) => return Ok(fits),
            Err(miss) => misses.push(miss),
        }
    }
    match misses.is_empty() {
        true => Ok(Vec::new()),
        false => Err(few(&misses, ", and ", what)),
    }
}

/// The first few of a list, and how many more there are.
fn few<T: ToString>(list: &[T], between: &str, what: &str) -> String {
    let named: Vec<String> = list.iter().take(NAMED).map(ToString::to_string).collect();
    let text = named.join(between);
    let last = match between {
        "; " => "; and ",
        ", and " => ", and ",
        _ => " and ",
    };
    match list.len().saturating_sub(NAMED) {
        0 => text,
        more => format!("{text}{last}{more} more {what}")
            .trim_end()
            .to_owned(),
    }
}
