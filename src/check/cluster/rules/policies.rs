//! Who may call whom: AuthorizationPolicy, RequestAuthentication, NetworkPolicy.

use serde_json::Value;

use crate::check::cluster::mistake::Mistake;
use crate::check::cluster::mistake::Symptom::{Answer, Denied, Slow};
use crate::check::cluster::object::{Object, at, is_matched, list, number, text, texts};
use crate::check::cluster::path::{Hop, Path};
use crate::check::cluster::rules::peers::{port_of, principal};
use crate::check::cluster::snapshot::ROOT_NAMESPACE;

/// A request as a policy sees it.
struct Asked<'a> {
    /// The callers' identities; `None` for one without.
    principals: Vec<Option<String>>,
    namespace: &'a str,
    path: &'a str,
    host: &'a str,
    port: Option<u64>,
    /// A token is only there where `check` sends one, at the first hop.
    may_have_token: bool,
}

pub(super) fn mistakes(path: &Path<'_>) -> Vec<Mistake> {
    let mut out = Vec::new();
    if let Some(front) = &path.front
        && let Some(pod) = front.pods.first()
    {
        let asked = Asked {
            principals: vec![None],
            namespace: "",
            path: &path.path,
            host: &path.host,
            port: front.target,
            may_have_token: true,
        };
        out.extend(
            verdict(path, pod, &asked, "the gateway")
                .into_iter()
                .chain(tokens(path, pod, &asked, "the gateway"))
                .map(Mistake::front),
        );
    }
    for hop in &path.hops {
        let Some(pod) = hop.pods.first() else { continue };
        let asked = Asked {
            principals: path.calling_pods(hop).iter().map(|pod| principal(pod)).collect(),
            namespace: path.calling_namespace(hop),
            path: &hop.call.path,
            host: &hop.call.host,
            port: port_of(hop),
            may_have_token: hop.caller.is_none(),
        };
        let found = verdict(path, pod, &asked, &hop.name).into_iter().chain(tokens(path, pod, &asked, &hop.name));
        out.extend(found.chain(network(path, hop, pod)).map(|mistake| mistake.seam(path, hop)));
    }
    out
}

/// The policies of a kind that hold for a pod.
fn holding<'a>(path: &Path<'a>, kind: &str, pod: &Object) -> Vec<&'a Object> {
    let holds = |policy: &&Object| {
        (policy.namespace() == pod.namespace() || policy.namespace() == ROOT_NAMESPACE)
            && pod.is_selected_by(policy.at("/spec/selector/matchLabels"))
            && pod.is_targeted_by(policy)
    };
    path.snapshot.all(kind).into_iter().filter(holds).collect()
}

/// Why the request is denied, as Istio decides it: any DENY that matches, else no ALLOW that does.
fn verdict(path: &Path<'_>, pod: &Object, asked: &Asked<'_>, hop: &str) -> Option<Mistake> {
    let policies = holding(path, "AuthorizationPolicy", pod);
    let action = |policy: &Object| match policy.text("/spec/action") {
        "" => "ALLOW".to_owned(),
        action => action.to_owned(),
    };
    let explains = &[Denied];
    for policy in policies.iter().filter(|policy| action(policy) == "DENY") {
        for (index, rule) in policy.list("/spec/rules").iter().enumerate() {
            if mismatch(rule, asked).is_none() {
                let says = format!("of a DENY policy takes the calls to {hop}{}", described(rule));
                return Some(Mistake::new(policy, format!("spec.rules[{index}]"), says, explains));
            }
        }
    }
    if let Some(custom) = policies.iter().find(|policy| action(policy) == "CUSTOM") {
        let provider = custom.text("/spec/provider/name");
        return Some(Mistake::new(
            custom,
            "spec.provider.name",
            format!("is {provider}: that authorizer refuses the request, or is not reached"),
            explains,
        ));
    }
    let allows: Vec<&&Object> = policies.iter().filter(|policy| action(policy) == "ALLOW").collect();
    let rules = |policy: &Object| policy.list("/spec/rules").iter().map(|rule| mismatch(rule, asked)).collect::<Vec<_>>();
    if allows.is_empty() || allows.iter().any(|policy| rules(policy).iter().any(Option::is_none)) {
        // From which address the call comes is not known here: what is denied by address may be this call.
        return policies.iter().filter(|policy| action(policy) == "DENY").find_map(|policy| {
            let by_address = |found: &Option<(String, String)>| {
                found.as_ref().is_some_and(|(field, _)| field.ends_with("ipBlocks") || field.ends_with("IpBlocks"))
            };
            let index = rules(policy).iter().position(by_address)?;
            let says = format!("of a DENY policy takes the calls to {hop}{}", described(&policy.list("/spec/rules")[index]));
            Some(Mistake::new(policy, format!("spec.rules[{index}]"), says, explains))
        });
    }
    // The policy that was made for this hop is the one to look at; one without rules allows nobody.
    let own = |policy: &&&&Object| policy.at("/spec/selector/matchLabels").is_object() && !policy.list("/spec/rules").is_empty();
    let policy = allows
        .iter()
        .find(own)
        .or_else(|| allows.iter().find(|policy| !policy.list("/spec/rules").is_empty()))
        .or(allows.first())?;
    let found = rules(policy);
    let Some((index, Some((field, why)))) = found.into_iter().enumerate().next() else {
        let says = format!("has no rules, which allows nobody to call {hop}, and no other policy allows it");
        return Some(Mistake::new(policy, "spec.rules", says, explains));
    };
    Some(Mistake::new(policy, format!("spec.rules[{index}].{field}"), why, explains))
}

/// What a rule of a DENY policy asks for, in brackets.
fn described(rule: &Value) -> String {
    let mut parts = Vec::new();
    for from in list(rule, "/from") {
        parts.extend(pairs(at(from, "/source")));
    }
    for to in list(rule, "/to") {
        parts.extend(pairs(at(to, "/operation")));
    }
    parts.extend(list(rule, "/when").iter().map(|when| text(when, "/key").to_owned()));
    if parts.is_empty() { " (every one)".to_owned() } else { format!(" ({})", parts.join("; ")) }
}

fn pairs(value: &Value) -> Vec<String> {
    let pairs = value.as_object().into_iter().flatten();
    pairs
        .map(|(name, values)| {
            format!(
                "{name}: {}",
                values.as_array().into_iter().flatten().filter_map(Value::as_str).collect::<Vec<_>>().join(", ")
            )
        })
        .collect()
}

/// The first part of a rule that the request does not meet, and how; `None` when the rule takes it.
fn mismatch(rule: &Value, asked: &Asked<'_>) -> Option<(String, String)> {
    let from = list(rule, "/from");
    let sources: Vec<Option<(&str, String)>> = from.iter().map(|from| source(at(from, "/source"), asked)).collect();
    if !sources.is_empty() && sources.iter().all(Option::is_some) {
        let (name, why) = sources.into_iter().flatten().next()?;
        return Some((format!("from[0].source.{name}"), why));
    }
    let operations: Vec<Option<(&str, String)>> =
        list(rule, "/to").iter().map(|to| operation(at(to, "/operation"), asked)).collect();
    if !operations.is_empty() && operations.iter().all(Option::is_some) {
        let (name, why) = operations.into_iter().flatten().next()?;
        return Some((format!("to[0].operation.{name}"), why));
    }
    list(rule, "/when").iter().enumerate().find_map(|(index, when)| {
        let why = condition(when, asked)?;
        Some((format!("when[{index}]"), why))
    })
}

/// `*`, `prefix*`, `*suffix` or the value itself.
fn fits(pattern: &str, value: &str) -> bool {
    match (pattern.strip_suffix('*'), pattern.strip_prefix('*')) {
        (Some(""), _) => !value.is_empty(),
        (Some(prefix), _) => value.starts_with(prefix),
        (_, Some(suffix)) => value.ends_with(suffix),
        _ => pattern == value,
    }
}

fn source<'a>(source: &Value, asked: &Asked<'_>) -> Option<(&'a str, String)> {
    let listed = |name: &str| texts(source, &format!("/{name}"));
    let who = || match asked.principals.first().and_then(Option::as_deref) {
        Some(principal) => format!("the caller is {principal}"),
        None => "the caller has no identity, because it does not come with mutual TLS".to_owned(),
    };
    let principals = listed("principals");
    let is_one = |principal: &Option<String>| {
        principal.as_deref().is_some_and(|principal| principals.iter().any(|pattern| fits(pattern, principal)))
    };
    if !principals.is_empty() && !asked.principals.iter().any(is_one) {
        return Some(("principals", format!("is {}, and {}", principals.join(", "), who())));
    }
    let accounts = listed("serviceAccounts");
    let is_account = |principal: &Option<String>| {
        let of = |account: &&str| match account.split_once('/') {
            Some((namespace, name)) => format!("/ns/{namespace}/sa/{name}"),
            None => format!("/sa/{account}"),
        };
        principal.as_deref().is_some_and(|principal| accounts.iter().any(|account| principal.ends_with(&of(account))))
    };
    if !accounts.is_empty() && !asked.principals.iter().any(is_account) {
        return Some(("serviceAccounts", format!("is {}, and {}", accounts.join(", "), who())));
    }
    let not = listed("notPrincipals");
    let is_none_of =
        |principal: &Option<String>| !not.iter().any(|pattern| fits(pattern, principal.as_deref().unwrap_or_default()));
    if !not.is_empty() && !asked.principals.iter().any(is_none_of) {
        return Some(("notPrincipals", format!("is {}, and {}", not.join(", "), who())));
    }
    let namespaces = listed("namespaces");
    let has_identity = asked.principals.iter().any(Option::is_some);
    let is_inside = has_identity && namespaces.iter().any(|pattern| fits(pattern, asked.namespace));
    if !namespaces.is_empty() && !is_inside {
        return Some(("namespaces", format!("is {}, and the caller is in {}", namespaces.join(", "), asked.namespace)));
    }
    let not = listed("notNamespaces");
    if not.iter().any(|pattern| fits(pattern, asked.namespace)) {
        return Some(("notNamespaces", format!("is {}, and the caller is in {}", not.join(", "), asked.namespace)));
    }
    let tokens = listed("requestPrincipals");
    if !tokens.is_empty() && !asked.may_have_token {
        return Some((
            "requestPrincipals",
            format!("is {}: it asks for a token, and the hop before does not pass one on", tokens.join(", ")),
        ));
    }
    if !tokens.is_empty() {
        return Some((
            "requestPrincipals",
            format!("is {}: it asks for a token, and the request has none that is valid", tokens.join(", ")),
        ));
    }
    let blocks = ["ipBlocks", "remoteIpBlocks"].into_iter().find(|name| !listed(name).is_empty())?;
    Some((blocks, format!("is {}, and the caller's address is none of those", listed(blocks).join(", "))))
}

fn operation<'a>(operation: &Value, asked: &Asked<'_>) -> Option<(&'a str, String)> {
    let listed = |name: &str| texts(operation, &format!("/{name}"));
    let path = asked.path.split('?').next().unwrap_or_default();
    let port = asked.port.map(|port| port.to_string()).unwrap_or_default();
    for (yes, no, value) in [("paths", "notPaths", path), ("methods", "notMethods", "GET"), ("ports", "notPorts", port.as_str())]
    {
        let (wanted, unwanted) = (listed(yes), listed(no));
        if !wanted.is_empty() && !value.is_empty() && !wanted.iter().any(|pattern| fits(pattern, value)) {
            let counts = if yes == "ports" { ": that of the pod counts, not the Service's" } else { "" };
            return Some((yes, format!("is {}, and the call is {value}{counts}", wanted.join(", "))));
        }
        if unwanted.iter().any(|pattern| fits(pattern, value)) {
            return Some((no, format!("is {}, and the call is {value}", unwanted.join(", "))));
        }
    }
    let hosts = listed("hosts");
    let bare = |host: &str| host.split(':').next().unwrap_or_default().to_owned();
    (!hosts.is_empty() && !hosts.iter().any(|pattern| fits(&bare(pattern), &bare(asked.host))))
        .then(|| ("hosts", format!("is {}, and the call asks for {}", hosts.join(", "), asked.host)))
}

/// Conditions on headers and tokens, which the request does not have. What else there is counts as met.
fn condition(when: &Value, asked: &Asked<'_>) -> Option<String> {
    let key = text(when, "/key");
    let values = texts(when, "/values");
    let absent = key.starts_with("request.headers[") || (key.starts_with("request.auth.") && !asked.may_have_token);
    if absent && !values.is_empty() {
        return Some(format!("asks for {key} = {}, which the call does not have", values.join(", ")));
    }
    let is = |value: &str| {
        (!values.is_empty() && !values.iter().any(|pattern| fits(pattern, value)))
            .then(|| format!("asks for {key} = {}, and it is {value}", values.join(", ")))
    };
    match key {
        "source.namespace" => is(asked.namespace),
        "source.principal" => is(asked.principals.first().and_then(Option::as_deref).unwrap_or("none")),
        _ => None,
    }
}

/// A token that is not accepted: its issuer or keys.
fn tokens(path: &Path<'_>, pod: &Object, asked: &Asked<'_>, hop: &str) -> Vec<Mistake> {
    let all = holding(path, "RequestAuthentication", pod).into_iter().filter(|_| asked.may_have_token);
    all.map(|policy| {
        let issuer = policy.text("/spec/jwtRules/0/issuer");
        Mistake::new(
            policy,
            "spec.jwtRules[0]",
            format!("takes tokens of {issuer} alone: {hop} refuses one of another issuer, with another key or too old"),
            &[Denied],
        )
    })
    .collect()
}

/// NetworkPolicies that do not let the caller in.
fn network(path: &Path<'_>, hop: &Hop<'_>, pod: &Object) -> Vec<Mistake> {
    let port = port_of(hop);
    let callers = path.calling_pods(hop);
    let holding: Vec<&Object> = path
        .snapshot
        .all("NetworkPolicy")
        .into_iter()
        .filter(|policy| {
            policy.namespace() == pod.namespace() && is_matched(pod.at("/metadata/labels"), policy.at("/spec/podSelector"))
        })
        .filter(|policy| policy.texts("/spec/policyTypes").contains(&"Ingress") || policy.texts("/spec/policyTypes").is_empty())
        .collect();
    let admits = |rule: &Value| {
        let ports = list(rule, "/ports");
        let by_port = ports.is_empty()
            || ports.iter().any(|one| {
                at(one, "/port").is_string() || number(at(one, "/port")).is_none() || number(at(one, "/port")) == port
            });
        let from = list(rule, "/from");
        by_port
            && (from.is_empty()
                || from.iter().any(|peer| callers.iter().any(|caller| is_peer(path, peer, caller, pod.namespace()))))
    };
    if callers.is_empty() || holding.is_empty() || holding.iter().any(|policy| policy.list("/spec/ingress").iter().any(admits)) {
        return Vec::new();
    }
    let caller = callers.first().map_or("", |pod| pod.name());
    let says = |policy: &Object| match policy.list("/spec/ingress").is_empty() {
        true => format!("is empty: nobody may open a connection to {}", hop.name),
        false => format!("admits others, and not {caller} on port {}", port.unwrap_or_default()),
    };
    holding.into_iter().map(|policy| Mistake::new(policy, "spec.ingress", says(policy), &[Answer, Slow])).collect()
}

fn is_peer(path: &Path<'_>, peer: &Value, caller: &Object, own: &str) -> bool {
    if !at(peer, "/ipBlock").is_null() {
        return true;
    }
    let namespace = match at(peer, "/namespaceSelector") {
        Value::Null => caller.namespace() == own,
        selector => path
            .snapshot
            .find("Namespace", "", caller.namespace())
            .is_none_or(|namespace| is_matched(namespace.at("/metadata/labels"), selector)),
    };
    namespace && is_matched(caller.at("/metadata/labels"), at(peer, "/podSelector"))
}
