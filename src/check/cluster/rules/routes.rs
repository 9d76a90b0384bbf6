//! VirtualServices: that one takes the request, and what its rule does with it.

use serde_json::Value;

use crate::check::cluster::front::{Front, bare_host};
use crate::check::cluster::mistake::Mistake;
use crate::check::cluster::mistake::Symptom::{
    Answer, Connection, Headers, Identity, Lanes, NotFound, Redirect, Retries, Sampling, Slow, Spans, Split,
};
use crate::check::cluster::object::{Object, at, covers, full_host, list, number, seconds, text, texts};
use crate::check::cluster::path::{Hop, Path, is_of_chain, rewritten};
use crate::check::cluster::routing::{Choice, SeamCall, is_bound, is_visible, names_host, takes};
use crate::check::cluster::rules::ours::leads_here;

pub(super) fn mistakes(path: &Path<'_>) -> Vec<Mistake> {
    let mut out = Vec::new();
    let first_is_routed = path.hops.iter().any(|hop| hop.caller.is_none() && hop.choice.is_some());
    if let Some(front) = path.front.as_ref().filter(|_| !first_is_routed) {
        let found = if front.servers.is_empty() { no_gateway(path) } else { unrouted(path, front) };
        out.extend(found.into_iter().map(Mistake::front));
    }
    for hop in &path.hops {
        let mut found = Vec::new();
        match &hop.choice {
            Some(choice) => {
                found.extend(of_rule(path, hop, choice));
                found.extend(rivals(path, hop));
            }
            None if hop.caller.is_some() => found.extend(hop.routes.first().map(|service| untaken(service, &hop.call.path))),
            None => {}
        }
        out.extend(found.into_iter().map(|mistake| mistake.seam(path, hop)));
    }
    out
}

/// Why no VirtualService takes the request at the gateway. The nearest one is named.
fn unrouted(path: &Path<'_>, front: &Front<'_>) -> Vec<Mistake> {
    let gateways: Vec<String> =
        front.servers.iter().map(|(gateway, ..)| format!("{}/{}", gateway.namespace(), gateway.name())).collect();
    let namespace = front.pods.first().map_or("", |pod| pod.namespace());
    // Others serve somebody else, under the same name at another gateway or under another name at this one.
    let mut all = path.snapshot.all("VirtualService");
    all.retain(|service| leads_here(path, service));
    let named: Vec<&Object> = all.iter().copied().filter(|service| names_host(service, &path.host)).collect();
    let mut out = Vec::new();
    for service in &named {
        if !is_bound(service, &gateways) {
            out.push(unbound(path, service, &gateways));
        } else if !is_visible(service, namespace) {
            let to = service.texts("/spec/exportTo").join(", ");
            out.push(Mistake::new(
                service,
                "spec.exportTo",
                format!("is {to}: the gateway in {namespace} does not see this VirtualService"),
                &[Answer],
            ));
        } else if let Some(foreign) = foreign_hosts(front, service.namespace(), &path.host) {
            out.push(foreign);
        } else {
            out.push(untaken(service, &path.path));
        }
    }
    if named.is_empty() {
        let mut bound: Vec<&Object> = all.into_iter().filter(|service| is_bound(service, &gateways)).collect();
        let first = path.hops.first().map(Hop::full_name).unwrap_or_default();
        bound.sort_by_key(|service| !leads_to(service, &first));
        out.extend(bound.into_iter().map(|service| {
            let hosts = service.texts("/spec/hosts").join(", ");
            Mistake::new(service, "spec.hosts", format!("is {hosts}, and the request asks for {}", path.host), &[Answer])
        }));
    }
    if out.is_empty() {
        // Short names in a VirtualService of another namespace lead there.
        let exact = |service: &&Object| service.texts("/spec/hosts").contains(&path.host.as_str());
        let strays = path.snapshot.all("VirtualService").into_iter().filter(exact);
        let strays = strays.filter(|service| missing_gateway(path, service).is_some());
        out.extend(strays.map(|service| unbound(path, service, &gateways)));
    }
    if out.is_empty() {
        out.extend(unserved(path, front));
    }
    out
}

/// The Gateway takes the host, and nobody says where its requests go.
fn unserved(path: &Path<'_>, front: &Front<'_>) -> Option<Mistake> {
    let (gateway, index, _) = front.servers.first().filter(|_| path.snapshot.knows("virtualservices.networking.istio.io"))?;
    let says = format!("has {}, and no VirtualService for it is bound to this Gateway: it has no route", path.host);
    Some(Mistake::new(gateway, format!("spec.servers[{index}].hosts"), says, &[Answer]))
}

/// No Gateway takes the host: the VirtualService names one that is not there.
fn no_gateway(path: &Path<'_>) -> Vec<Mistake> {
    let services = path.snapshot.all("VirtualService").into_iter().filter(|service| names_host(service, &path.host));
    let of = |service: &Object| {
        let says = missing_gateway(path, service).filter(|_| leads_here(path, service))?;
        Some(Mistake::new(service, "spec.gateways", says, &[Connection, Answer, Redirect]))
    };
    services.filter_map(of).collect()
}

/// The Gateway that a VirtualService names and that does not exist.
fn missing_gateway(path: &Path<'_>, service: &Object) -> Option<String> {
    let exists = |name: &str| {
        let (namespace, name) = name.split_once('/').unwrap_or((service.namespace(), name));
        path.snapshot.find("Gateway", namespace, name).is_some()
    };
    let missing = service.texts("/spec/gateways").into_iter().find(|name| *name != "mesh" && !exists(name))?;
    let place = if missing.contains('/') { String::new() } else { format!(" in {}", service.namespace()) };
    Some(format!("names {missing}, and there is no such Gateway{place}"))
}

/// Whether a rule of a VirtualService sends requests to this host.
fn leads_to(service: &Object, host: &str) -> bool {
    let mut routes = service.list("/spec/http").iter().flat_map(|rule| list(rule, "/route"));
    routes.any(|route| full_host(text(route, "/destination/host"), service.namespace()) == host)
}

fn unbound(path: &Path<'_>, service: &Object, gateways: &[String]) -> Mistake {
    let bound = service.texts("/spec/gateways");
    let list = gateways.join(", ");
    if bound.is_empty() {
        return Mistake::new(
            service,
            "spec.gateways",
            format!("is not set, which means the mesh alone: the gateway {list} does not have these routes"),
            &[Answer],
        );
    }
    let says = match missing_gateway(path, service) {
        Some(says) => says,
        None if bound == ["mesh"] => format!("is mesh alone: the gateway {list} does not have these routes"),
        None => format!("is {}, and the request comes in at {list}", bound.join(", ")),
    };
    Mistake::new(service, "spec.gateways", says, &[Answer])
}

/// The hosts of a Gateway's server may ask for VirtualServices of one namespace alone.
fn foreign_hosts(front: &Front<'_>, namespace: &str, host: &str) -> Option<Mistake> {
    let (gateway, index, server) = front.servers.first()?;
    let patterns: Vec<&str> = texts(server, "/hosts");
    let admits = |pattern: &&str| {
        let of = pattern.split_once('/').map_or("*", |(namespace, _)| namespace);
        let own = of == "." && namespace == gateway.namespace();
        covers(bare_host(pattern), host) && (of == "*" || of == namespace || own)
    };
    if patterns.iter().any(admits) {
        return None;
    }
    let says = format!(
        "is {}: the part before / admits VirtualServices of that namespace alone, and the one for {host} is in {namespace}",
        patterns.join(", ")
    );
    Some(Mistake::new(gateway, format!("spec.servers[{index}].hosts"), says, &[Answer]))
}

/// The host is right and no rule takes the path. The rule whose path is most like it is named.
fn untaken(service: &Object, path: &str) -> Mistake {
    let uri = |rule: &Value| {
        let matches = list(rule, "/match").iter();
        let uris: Vec<String> = matches
            .filter_map(|one| {
                at(one, "/uri")
                    .as_object()?
                    .iter()
                    .next()
                    .map(|(kind, value)| format!("{kind} {}", value.as_str().unwrap_or_default()))
            })
            .collect();
        uris.join(", ")
    };
    let alike = |rule: &Value| {
        let uri = uri(rule);
        let shared = |uri: &str| {
            uri.split_once(' ')
                .map_or(0, |(_, uri)| uri.bytes().zip(path.bytes()).take_while(|(a, b)| a.eq_ignore_ascii_case(b)).count())
        };
        uri.split(", ").map(shared).max().unwrap_or(0)
    };
    let rules = service.list("/spec/http");
    let Some((index, rule)) = rules.iter().enumerate().rev().max_by_key(|(_, rule)| alike(rule)) else {
        return Mistake::new(service, "spec.http", "has no rule for HTTP", &[Answer]);
    };
    let shown = uri(rule);
    let says = if shown.is_empty() || takes_path(rule, path) {
        format!("asks for more than the path {path}: a header, a method or another caller, which the request is not")
    } else {
        format!("is {shown}, and no rule takes the path {path}")
    };
    Mistake::new(service, format!("spec.http[{index}].match"), says, &[Answer])
}

fn takes_path(rule: &Value, path: &str) -> bool {
    list(rule, "/match").iter().any(|one| {
        text(one, "/uri/exact") == path || at(one, "/uri/prefix").as_str().is_some_and(|prefix| path.starts_with(prefix))
    })
}

/// What the rule does to the request, apart from where it sends it.
fn of_rule(path: &Path<'_>, hop: &Hop<'_>, choice: &Choice<'_>) -> Vec<Mistake> {
    let Choice { object, rule, .. } = choice;
    let mut out = Vec::new();
    let mut add = |field: &str, says: String, explains: &[_]| out.push(Mistake::new(object, choice.field(field), says, explains));
    if let Some(status) = number(at(rule, "/directResponse/status")) {
        add("directResponse.status", format!("is {status}: the proxy answers itself and calls nobody"), &[Answer]);
    }
    if at(rule, "/redirect").is_object() {
        let to = ["/redirect/authority", "/redirect/uri"].map(|pointer| text(rule, pointer)).concat();
        add("redirect", format!("sends the caller to {to} in place of calling {}", hop.name), &[Answer, Redirect]);
    }
    if let Some(delegate) = rule.get("delegate").filter(|_| at(rule, "/route").is_null()) {
        let name = text(delegate, "/name");
        add(
            "delegate.name",
            format!("is {name}, and there is no such VirtualService, or none of its rules takes the path"),
            &[Answer],
        );
    }
    for (kind, shown) in [("abort", "/fault/abort/httpStatus"), ("delay", "/fault/delay/fixedDelay")] {
        if at(rule, &format!("/fault/{kind}")).is_object() {
            let value = at(rule, shown);
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            let share = at(rule, &format!("/fault/{kind}/percentage/value")).as_f64().filter(|share| *share < 100.0);
            let what = match (kind, share) {
                ("abort", Some(_)) => "are answered with",
                ("abort", None) => "is answered with",
                (_, Some(_)) => "wait",
                (_, None) => "waits",
            };
            let share = share.map_or_else(|| "every request".to_owned(), |share| format!("{share} % of the requests"));
            let mistake = Mistake::new(
                object,
                choice.field(&format!("fault.{kind}")),
                format!("is set: {share} {what} {value} on purpose"),
                &[Answer, Slow, Retries, Split],
            );
            out.push(mistake.standing());
        }
    }
    // Which paths a regular expression takes is not worked out here.
    let patterns = list(rule, "/match").iter().filter_map(|one| at(one, "/uri/regex").as_str());
    out.extend(patterns.filter(|_| !hop.answered).map(|pattern| {
        let asked = if hop.caller.is_none() { &path.path } else { &hop.call.path };
        let says = format!("has the regular expression {pattern}, which must take the whole path {asked}, not a part of it");
        Mistake::new(object, choice.field("match"), says, &[NotFound])
    }));
    out.extend(times(choice));
    out.extend(headers(choice, hop.caller.is_none()));
    if let Some(front) = path.front.as_ref().filter(|_| hop.caller.is_none()) {
        out.extend(rewrite(path, hop, choice));
        out.extend(foreign_hosts(front, object.namespace(), &path.host));
    } else {
        out.extend(rewrite_between(hop, choice));
    }
    out
}

/// Timeouts and retries: they matter only where a call was given up or repeated.
fn times(choice: &Choice<'_>) -> Vec<Mistake> {
    let Choice { object, rule, .. } = choice;
    let mut out = Vec::new();
    for (pointer, field) in [("/timeout", "timeout"), ("/retries/perTryTimeout", "retries.perTryTimeout")] {
        let value = text(rule, pointer);
        if let Some(limit) = seconds(value).filter(|seconds| *seconds > 0.0) {
            let says = format!("is {value}: shorter than the answer takes");
            // Where a second is not enough, the answers are slow, and that shows.
            let explains: &[_] = if field == "timeout" || limit >= 1.0 { &[Slow] } else { &[Slow, Retries] };
            out.push(Mistake::new(object, choice.field(field), says, explains));
        }
    }
    out.sort_by(|a, b| shortest(choice, &a.field).total_cmp(&shortest(choice, &b.field)));
    if let Some(attempts) = number(at(rule, "/retries/attempts")).filter(|attempts| *attempts > 0) {
        let on = text(rule, "/retries/retryOn");
        out.push(Mistake::new(
            object,
            choice.field("retries.attempts"),
            format!(
                "is {attempts}{}: failed calls are repeated here, and each layer that does so multiplies the calls",
                if on.is_empty() { String::new() } else { format!(" (on {on})") }
            ),
            &[Retries],
        ));
    }
    out
}

fn shortest(choice: &Choice<'_>, field: &str) -> f64 {
    let pointer = if field.ends_with("perTryTimeout") { "/retries/perTryTimeout" } else { "/timeout" };
    seconds(text(choice.rule, pointer)).unwrap_or(f64::MAX)
}

/// Headers that belong to a trace, to a request or to the caller, and are removed or set.
fn headers(choice: &Choice<'_>, is_front: bool) -> Vec<Mistake> {
    let Choice { object, rule, .. } = choice;
    let mut places = vec![(at(rule, "/headers/request"), choice.field("headers.request"))];
    for (index, route) in list(rule, "/route").iter().enumerate() {
        places.push((at(route, "/headers/request"), choice.field(&format!("route[{index}].headers.request"))));
    }
    let mut out = Vec::new();
    for (request, field) in places {
        let removed = texts(request, "/remove");
        // At the gateway lanes are closed to callers from outside on purpose.
        let is_missed = |name: &&str| is_traced(name) || (!is_front && name.eq_ignore_ascii_case("x-lane"));
        let removed: Vec<&str> = removed.into_iter().filter(is_missed).collect();
        if !removed.is_empty() {
            let says = format!("has {}: the proxy takes it away", removed.join(", "));
            out.push(Mistake::new(object, format!("{field}.remove"), says, &[Headers, Spans, Lanes]));
        }
        for how in ["set", "add"] {
            for (name, value) in request.get(how).and_then(Value::as_object).into_iter().flatten() {
                let value = value.as_str().unwrap_or_default();
                let (says, explains) = match name.to_ascii_lowercase().as_str() {
                    "host" | ":authority" => (format!("has {name}: {value}: the hop is asked for another host"), &[Answer][..]),
                    "x-request-id" => (
                        format!(
                            "has {name}: {value}: every request gets the same id, from which proxies also draw their sampling"
                        ),
                        &[Headers, Spans, Sampling][..],
                    ),
                    lower if is_traced(lower) => {
                        (format!("has {name}: {value}: the proxy overwrites it"), &[Headers, Spans, Sampling][..])
                    }
                    "x-lane" => (format!("has {name}: {value}: every request takes that lane"), &[Headers, Lanes, Split][..]),
                    "x-forwarded-client-cert" => (format!("has {name}: the caller's identity is overwritten"), &[Identity][..]),
                    _ => continue,
                };
                out.push(Mistake::new(object, format!("{field}.{how}"), says, explains));
            }
        }
    }
    out
}

/// Headers that `check` follows from hop to hop. `x-lane` may be removed at the gateway on purpose.
pub(super) fn is_traced(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    matches!(name.as_str(), "traceparent" | "tracestate" | "b3" | "baggage" | "x-request-id") || name.starts_with("x-b3-")
}

/// The path as it reaches a hop behind another: a rewrite may lead away from the chain.
fn rewrite_between(hop: &Hop<'_>, choice: &Choice<'_>) -> Option<Mistake> {
    let uri = at(choice.rule, "/rewrite/uri").as_str()?;
    let reaches = rewritten(choice.rule, &hop.call.path)?;
    if hop.answered || hop.is_foreign || is_of_chain(&reaches) {
        return None;
    }
    let says = format!("is {uri}: {} is asked for {reaches}, which is no path of the chain (/service<N>)", hop.name);
    Some(Mistake::new(choice.object, choice.field("rewrite.uri"), says, &[NotFound]))
}

/// The path as it reaches the first hop: `/service<N>` is the chain, and a rewrite may miss it.
fn rewrite(path: &Path<'_>, hop: &Hop<'_>, choice: &Choice<'_>) -> Option<Mistake> {
    if hop.answered || is_of_chain(&hop.call.path) {
        return None;
    }
    let says = match at(choice.rule, "/rewrite/uri").as_str() {
        Some(uri) => {
            format!("is {uri}: {} is asked for {}, which is no path of the chain (/service<N>)", hop.name, hop.call.path)
        }
        None => format!("is not set: {} is asked for {}, which is no path of the chain (/service<N>)", hop.name, path.path),
    };
    Some(Mistake::new(choice.object, choice.field("rewrite.uri"), says, &[Answer]))
}

/// Several VirtualServices for one host: in the mesh only the oldest counts, at a gateway their rules follow each other.
fn rivals(path: &Path<'_>, hop: &Hop<'_>) -> Option<Mistake> {
    let choice = hop.choice.as_ref()?;
    let host = if hop.caller.is_some() { hop.full_name() } else { path.host.clone() };
    let exact = |service: &&&Object| {
        let hosts = service.texts("/spec/hosts");
        hosts.iter().any(|name| full_host(name, service.namespace()) == host)
    };
    // At a gateway the rules of both hold, and only one that takes the same request is in the way.
    let asked = SeamCall { path: path.path.clone(), ..hop.call.clone() };
    let labels = path.calling_pods(hop).first().map_or(&Value::Null, |pod| pod.at("/metadata/labels"));
    let is_in_the_way = |service: &&&Object| {
        let mut rules = service.list("/spec/http").iter();
        hop.caller.is_some() || rules.any(|rule| takes(rule, &asked, labels, path.calling_namespace(hop)))
    };
    let rivals: Vec<&&Object> = hop.routes.iter().filter(exact).filter(is_in_the_way).collect();
    let other = rivals.iter().find(|service| service.title() != choice.object.title())?;
    let (what, fix) = match hop.caller {
        Some(_) => ("only the oldest of them counts in the mesh", "its rules hold and the other's do not"),
        None => ("a gateway has the rules of both, the older object's first", "its rule takes the request first"),
    };
    let says = format!("names {host}, and so does {}: {what}, so {fix}", other.title());
    let index = choice
        .object
        .texts("/spec/hosts")
        .iter()
        .position(|name| full_host(name, choice.object.namespace()) == host)
        .unwrap_or(0);
    Some(Mistake::new(choice.object, format!("spec.hosts[{index}]"), says, &[Answer, Slow, Retries, Headers, Split]))
}
