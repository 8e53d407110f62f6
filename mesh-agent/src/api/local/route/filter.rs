//! Checks of the filters of a rule or of a backend.

use std::collections::HashMap;

use super::{
    super::{
        super::{
            error::Problem,
            kinds::{
                CorsFilter, HeaderFilter, HttpFilterType, HttpRouteFilter, HttpRouteRule,
                PathMatchType, PathModifier, PathModifierType, RequestMirror, RequestRedirect,
            },
            path::Path,
            yaml,
        },
        header,
    },
    plain_path,
};

/// Whose filters they are.
#[derive(Clone, Copy)]
pub(super) enum Of<'r> {
    Rule(&'r HttpRouteRule),
    Backend(&'r HttpRouteRule),
}

pub(super) fn check(
    filters: &[HttpRouteFilter],
    path: &Path,
    of: Of<'_>,
    problems: &mut Vec<Problem>,
) {
    let mut first: HashMap<HttpFilterType, usize> = HashMap::new();
    for (nth, filter) in filters.iter().enumerate() {
        let path = path.index(nth);
        let filter_type = filter.filter_type;
        let name = filter_type.as_str();
        if first.insert(filter_type, nth).is_some() && filter_type != HttpFilterType::RequestMirror
        {
            let message = format!("{name} is given twice: once in a rule at most");
            problems.push(Problem::new(path.key("type"), message));
        }
        let refused_here = match filter_type {
            HttpFilterType::RequestRedirect | HttpFilterType::Cors => matches!(of, Of::Backend(_)),
            _ => false,
        };
        if refused_here {
            let message = format!("{name} answers before a backend is chosen: not in backendRefs");
            let problem = Problem::new(path.key("type"), message);
            problems.push(problem.wanted("the filter in the rule's filters"));
        }
        if !filter.has(filter_type) {
            let path = path.key(filter_type.field());
            let message = format!("required field is missing: type is {name}");
            problems.push(Problem::new(path, message).wanted("a mapping"));
        }
        for other in HttpFilterType::ALL {
            if other != filter_type && filter.has(other) {
                let message = format!("not with type {name}");
                let problem = Problem::new(path.key(other.field()), message);
                problems.push(problem.wanted(format!("only {}", filter_type.field())));
            }
        }
        content(filter, &path, of, problems);
    }
    let redirect = first.get(&HttpFilterType::RequestRedirect);
    if let (Some(_), Some(rewrite)) = (redirect, first.get(&HttpFilterType::UrlRewrite)) {
        let message = "URLRewrite and RequestRedirect cannot stand together: what is redirected is not forwarded";
        let problem = Problem::new(path.index(*rewrite).key("type"), message);
        problems.push(problem.wanted("one of the two"));
    }
}

fn content(filter: &HttpRouteFilter, path: &Path, of: Of<'_>, problems: &mut Vec<Problem>) {
    for (field, modifier) in [
        ("requestHeaderModifier", &filter.request_header_modifier),
        ("responseHeaderModifier", &filter.response_header_modifier),
    ] {
        if let Some(modifier) = modifier {
            headers(modifier, &path.key(field), problems);
        }
    }
    if let Some(mirror) = &filter.request_mirror {
        mirrored(mirror, &path.key("requestMirror"), problems);
    }
    if let Some(redirect) = &filter.request_redirect {
        redirected(redirect, &path.key("requestRedirect"), of, problems);
    }
    if let Some(rewrite) = &filter.url_rewrite {
        let path = path.key("urlRewrite");
        if let Some(modifier) = &rewrite.path {
            modified(modifier, &path.key("path"), of, problems);
        } else if rewrite.hostname.is_none() {
            let problem = Problem::warning(path, "the rewrite changes nothing");
            problems.push(problem);
        }
    }
    if let Some(cors) = &filter.cors {
        shared(cors, &path.key("cors"), problems);
    }
}

fn headers(modifier: &HeaderFilter, path: &Path, problems: &mut Vec<Problem>) {
    let set = modifier.set.iter().map(|header| &header.name);
    let add = modifier.add.iter().map(|header| &header.name);
    let named = |list: &'static str| move |(nth, name)| (list, nth, name);
    let all = set
        .enumerate()
        .map(named("set"))
        .chain(add.enumerate().map(named("add")))
        .chain(modifier.remove.iter().enumerate().map(named("remove")));
    let mut seen: HashMap<String, &str> = HashMap::new();
    for (list, nth, name) in all {
        let path = match list {
            "remove" => path.key(list).index(nth),
            _ => path.key(list).index(nth).key("name"),
        };
        let lower = name.to_ascii_lowercase();
        if let Some(reason) = header::reserved(&lower) {
            problems.push(Problem::new(path.clone(), format!("{name} {reason}")));
        }
        if let Some(other) = seen.insert(lower, list) {
            let message = format!("header {name} is already in {other}: one action for a header");
            problems.push(Problem::new(path, message).wanted("each header once"));
        }
    }
    if seen.is_empty() {
        problems.push(Problem::warning(
            path.clone(),
            "the filter changes no header",
        ));
    }
}

fn mirrored(mirror: &RequestMirror, path: &Path, problems: &mut Vec<Problem>) {
    if mirror.backend_ref.is_service() && mirror.backend_ref.port.is_none() {
        let path = path.key("backendRef").key("port");
        let message = "required field is missing: a Service needs its port";
        problems.push(Problem::new(path, message).wanted("1..=65535"));
    }
    if mirror.percent.is_some() && mirror.fraction.is_some() {
        let problem = Problem::new(path.key("fraction"), "not beside percent");
        problems.push(problem.wanted("one of percent and fraction"));
    }
    if let Some(fraction) = mirror.fraction
        && fraction.numerator > fraction.denominator
    {
        let path = path.key("fraction").key("numerator");
        let expected = format!("at most the denominator, {}", fraction.denominator);
        problems.push(Problem::expected(path, expected, fraction.numerator));
    }
}

fn redirected(redirect: &RequestRedirect, path: &Path, of: Of<'_>, problems: &mut Vec<Problem>) {
    if let Some(code) = redirect.status_code
        && !matches!(code, 301 | 302 | 303 | 307 | 308)
    {
        let expected = "one of 301, 302, 303, 307, 308";
        problems.push(Problem::expected(path.key("statusCode"), expected, code));
    }
    if let Some(modifier) = &redirect.path {
        modified(modifier, &path.key("path"), of, problems);
    }
    if *redirect == RequestRedirect::default() {
        let message = "the redirect leads to where the request came to";
        problems.push(Problem::warning(path.clone(), message));
    }
}

fn modified(modifier: &PathModifier, path: &Path, of: Of<'_>, problems: &mut Vec<Problem>) {
    let full = ("replaceFullPath", &modifier.replace_full_path);
    let prefix = ("replacePrefixMatch", &modifier.replace_prefix_match);
    let (wanted, other, name) = match modifier.modifier_type {
        PathModifierType::ReplaceFullPath => (full, prefix, "ReplaceFullPath"),
        PathModifierType::ReplacePrefixMatch => (prefix, full, "ReplacePrefixMatch"),
    };
    match wanted {
        (field, None) => {
            let message = format!("required field is missing: type is {name}");
            problems.push(Problem::new(path.key(field), message).wanted("a path"));
        }
        // The empty text takes the prefix away.
        (_, Some(value)) if value.is_empty() => {}
        (field, Some(value)) => plain_path(value, &path.key(field), problems),
    }
    if other.1.is_some() {
        let message = format!("not with type {name}");
        problems
            .push(Problem::new(path.key(other.0), message).wanted(format!("only {}", wanted.0)));
    }
    if modifier.modifier_type == PathModifierType::ReplacePrefixMatch {
        let (Of::Rule(rule) | Of::Backend(rule)) = of;
        let one_prefix = match &rule.matches[..] {
            [] => true,
            [one] => one
                .path
                .as_ref()
                .is_none_or(|path| path.match_type == PathMatchType::PathPrefix),
            _ => false,
        };
        if !one_prefix {
            let message =
                "ReplacePrefixMatch needs a rule with exactly one match, of a path prefix";
            let problem = Problem::new(path.key("type"), message);
            problems.push(problem.wanted("one match with path type PathPrefix"));
        }
    }
}

fn shared(cors: &CorsFilter, path: &Path, problems: &mut Vec<Problem>) {
    for (field, list) in [
        ("allowOrigins", &cors.allow_origins),
        ("allowMethods", &cors.allow_methods),
        ("allowHeaders", &cors.allow_headers),
        ("exposeHeaders", &cors.expose_headers),
    ] {
        let path = path.key(field);
        if list.len() > 1 && list.iter().any(|one| one == "*") {
            let problem = Problem::new(path.clone(), "'*' stands alone: it already means all");
            problems.push(problem.wanted("'*' alone, or a list without it"));
        }
        for (nth, one) in list.iter().enumerate() {
            if list[..nth]
                .iter()
                .any(|other| other.eq_ignore_ascii_case(one))
            {
                let message = format!("{} is given twice", yaml::quoted(one));
                problems.push(Problem::new(path.index(nth), message));
            }
        }
    }
    if cors.allow_origins.is_empty() {
        let message = "no origin is allowed: the filter allows nothing";
        problems.push(Problem::warning(path.clone(), message));
    }
}
