//! A mistake in the cluster's objects, and which findings it explains.

use serde_json::Value;

use crate::check::cluster::object::Object;
use crate::check::cluster::path::{Hop, Path};
use crate::check::envoy::gateway::clip;
use crate::report::{CheckId, Finding, Group, OwnCause, Status};

/// How a mistake shows in the traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Symptom {
    /// No connection, no handshake.
    Connection,
    /// A certificate that is not valid here.
    Certificate,
    /// Another answer than the hop's, or none.
    Answer,
    /// An answer that came too late, or a call that was given up.
    Slow,
    /// More requests than a limit lets pass.
    Overload,
    /// Somebody answered, and does not know the path.
    NotFound,
    /// No pod to send it to.
    NoPod,
    /// Denied by a policy.
    Denied,
    /// What plain HTTP at the gateway does.
    Redirect,
    /// Headers that are lost or changed.
    Headers,
    /// A proxy that is missing, or handles bytes.
    Proxies,
    /// Spans that are missing.
    Spans,
    /// Too many or too few requests are sampled.
    Sampling,
    /// A caller without an identity, or with another one.
    Identity,
    Retries,
    /// The shares of versions, or one instance that is unlike its siblings.
    Split,
    Lanes,
    /// Other hops than expected.
    Chain,
}

use Symptom::{
    Answer, Certificate, Connection, Denied, Headers, Identity, Lanes, NoPod, NotFound, Overload, Proxies, Redirect, Retries,
    Sampling, Slow, Spans, Split,
};

/// A call that leaves the mesh shows in every way.
pub(crate) const EVERYTHING: &[Symptom] = &[Answer, NoPod, Slow, Headers, Proxies, Spans, Identity];

/// What a finding shows.
fn symptoms(finding: &Finding) -> Vec<Symptom> {
    let mut out = match finding.id {
        // Neither is a matter of objects on the way of the request.
        CheckId::ReachDns | CheckId::TracesBackend => Vec::new(),
        CheckId::ReachTcp | CheckId::ReachTls => vec![Connection],
        CheckId::ReachCertificate => vec![Certificate],
        CheckId::ReachRedirect | CheckId::ReachHsts => vec![Redirect],
        CheckId::TracesSampling | CheckId::PropagationSampled => vec![Sampling, Headers],
        CheckId::PropagationProxies | CheckId::PropagationSidecar | CheckId::PropagationCoverage => {
            vec![Proxies, Spans, Headers]
        }
        CheckId::TrafficIdentity => vec![Identity, Proxies],
        CheckId::TrafficRetries => vec![Retries],
        CheckId::TrafficVersions | CheckId::TrafficSplit => vec![Split],
        CheckId::TrafficLatency => vec![Slow, Split],
        CheckId::ChainHops => vec![Answer],
        id => match id.group() {
            Group::Chain => vec![Symptom::Chain, Answer],
            Group::Reach | Group::Watch => vec![Answer],
            Group::Propagation => vec![Headers, Proxies],
            Group::Traces => vec![Spans, Headers, Proxies],
            Group::Lanes => vec![Lanes],
            _ => vec![Answer, Split],
        },
    };
    if matches!(finding.id.group(), Group::Reach | Group::Chain | Group::Traffic | Group::Watch | Group::Lanes) {
        out.extend(match finding.own_cause {
            Some(OwnCause::Denied | OwnCause::Unauthorized) => Some(Denied),
            Some(OwnCause::Limited) => Some(Overload),
            Some(OwnCause::NotFound) => Some(NotFound),
            Some(OwnCause::Abort | OwnCause::Fault | OwnCause::Loop) | None => None,
        });
        let words = words(finding);
        // Where the run itself gave up, no timeout on the way has struck.
        let own = finding.text.contains("(--timeout)");
        let shows =
            |symptom, signs: &[&str]| signs.iter().any(|sign| words.contains(&format!(" {sign} "))) && !(own && symptom == Slow);
        out.extend(SIGNS.iter().filter(|(symptom, signs)| shows(*symptom, signs)).map(|(symptom, _)| *symptom));
    }
    out
}

/// What proxies, hops and this program write of a symptom, in whole words.
const SIGNS: [(Symptom, &[&str]); 6] = [
    (Slow, &["504", "in time", "timed out", "slower", "gave up", "timeout", "timeouts", "--timeout", "grpc-timeout"]),
    (Overload, &["overflow", "429", "circuit breaker", "limit", "limits", "limited", "local_rate_limited"]),
    (NoPod, &["no healthy upstream", "no pod", "no pods", "UH"]),
    (NotFound, &["404"]),
    (Denied, &["403", "401", "RBAC", "denied", "denies"]),
    (Retries, &["retried", "attempt", "attempts"]),
];

/// A finding's words between single spaces, without the names of the hops that it is about. Whole words: other names and URLs may have
/// any of them inside.
fn words(finding: &Finding) -> String {
    let names: Vec<&str> = finding.seam.iter().flat_map(|seam| [&*seam.from, &*seam.to]).chain(finding.hop.as_deref()).collect();
    let texts = [Some(finding.text.as_str()), finding.cause.as_deref()].into_iter().flatten();
    let words = texts.chain(finding.detail.iter().map(String::as_str)).flat_map(str::split_whitespace);
    let words = words.map(|word| word.trim_matches(['.', ',', ':', ';', '(', ')', '[', ']', '"', '\'']));
    words.filter(|word| !names.contains(word)).fold(" ".to_owned(), |text, word| text + word + " ")
}

/// Where a mistake acts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum MistakeScope {
    /// At the gateway, in front of the first hop.
    Front,
    /// Where one hop calls another.
    Seam(String, String),
    /// At a hop and where it calls.
    Hop(String),
    Anywhere,
}

impl MistakeScope {
    fn is_of(&self, finding: &Finding) -> bool {
        let hop = finding.hop.as_deref();
        match (self, &finding.seam) {
            (Self::Anywhere, _) => true,
            (Self::Front, None) => finding.group == Group::Reach || hop.is_none(),
            (Self::Front, Some(seam)) => seam.from == crate::check::chain::evidence::CALLER,
            // What passes a foreign app names the hops on both sides of it, and the app beside.
            (Self::Seam(from, to), Some(seam)) => {
                (seam.from == *from && (seam.to == *to || Some(to.as_str()) == hop))
                    || (seam.to == *to && Some(from.as_str()) == hop)
            }
            // What is said of one hop alone may be about both of its sides.
            (Self::Seam(from, to), None) => hop.is_none_or(|hop| hop == from || hop == to),
            (Self::Hop(name), Some(seam)) => {
                [Some(seam.from.as_str()), Some(seam.to.as_str()), hop].contains(&Some(name.as_str()))
            }
            (Self::Hop(name), None) => hop.is_none_or(|hop| hop == name),
        }
    }
}

/// One mistake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mistake {
    /// `DestinationRule httpserver/service2`.
    pub(crate) object: String,
    /// `spec.trafficPolicy.tls.mode`.
    pub(crate) field: String,
    /// What the field is and why that does not work, from its verb on: `is DISABLE, and …`.
    pub(crate) says: String,
    scope: MistakeScope,
    explains: Vec<Symptom>,
    /// It is reported even where this run saw none of its effects.
    pub(crate) is_always_reported: bool,
    pub(crate) next: String,
}

impl Mistake {
    pub(crate) fn new(object: &Object, field: impl Into<String>, says: impl Into<String>, explains: &[Symptom]) -> Self {
        let (field, title) = (field.into(), object.title());
        let next = show(object, &field);
        Self {
            object: title,
            field,
            says: says.into(),
            scope: MistakeScope::Anywhere,
            explains: explains.to_vec(),
            is_always_reported: false,
            next,
        }
    }

    pub(crate) fn front(self) -> Self {
        Self { scope: MistakeScope::Front, ..self }
    }

    pub(crate) fn seam(self, path: &Path<'_>, hop: &Hop<'_>) -> Self {
        let scope = match hop.caller {
            Some(_) => MistakeScope::Seam(path.caller_name(hop).to_owned(), hop.name.clone()),
            None => MistakeScope::Front,
        };
        Self { scope, ..self }
    }

    pub(crate) fn hop(self, hop: &Hop<'_>) -> Self {
        Self { scope: MistakeScope::Hop(hop.name.clone()), ..self }
    }

    /// With another command than the one that shows the field.
    pub(crate) fn shown_by(self, next: &str) -> Self {
        Self { next: next.to_owned(), ..self }
    }

    /// Reported also where this run saw no effect.
    pub(crate) fn standing(self) -> Self {
        Self { is_always_reported: true, ..self }
    }

    pub(crate) fn sentence(&self) -> String {
        format!("{}: {} {}", self.object, self.field, self.says)
    }

    /// Whether this mistake explains a finding.
    pub(crate) fn explains(&self, finding: &Finding) -> bool {
        // Calls are repeated wherever one of the hops below fails.
        let is_below = finding.id == CheckId::TrafficRetries;
        (is_below || self.scope.is_of(finding)) && symptoms(finding).iter().any(|symptom| self.explains.contains(symptom))
    }

    /// Gives a finding its cause.
    pub(crate) fn give(&self, finding: &mut Finding) {
        let old = finding.cause.take().filter(|_| self.explains.contains(&Certificate));
        finding.cause = Some(old.map_or_else(|| self.sentence(), |old| format!("{}. {old}", self.sentence())));
        (finding.object, finding.field) = (Some(self.object.clone()), Some(self.field.clone()));
        finding.next.insert(0, self.next.clone());
    }

    /// The mistake as a finding of its own.
    pub(crate) fn finding(&self, status: Status) -> Finding {
        let mut finding = Finding::skip(CheckId::ClusterMistake, self.sentence());
        finding.status = status;
        finding.next.push(self.next.clone());
        (finding.object, finding.field) = (Some(self.object.clone()), Some(self.field.clone()));
        if let MistakeScope::Seam(from, to) = &self.scope {
            return finding.seam(from, to, None).hop(to);
        }
        if let MistakeScope::Hop(name) = &self.scope {
            return finding.hop(name);
        }
        finding
    }
}

/// Which of these explains a finding: what is certain before what may be, and for repeated calls what makes calls fail before what
/// repeats them.
pub(crate) fn cause_of<'a>(mistakes: impl Iterator<Item = &'a Mistake>, finding: &Finding) -> Option<usize> {
    let is_of_repeats = |mistake: &Mistake| finding.id == CheckId::TrafficRetries && !mistake.explains.contains(&Answer);
    let fitting = mistakes.enumerate().filter(|(_, mistake)| mistake.explains(finding));
    fitting.min_by_key(|(at, mistake)| (is_of_repeats(mistake), !mistake.is_always_reported, *at)).map(|(at, _)| at)
}

/// The command that shows a field, and what it prints.
fn show(object: &Object, field: &str) -> String {
    let group = object.text("/apiVersion").split_once('/').map_or("", |(group, _)| group);
    let kind = object.kind().to_lowercase();
    let resource = match group {
        "" | "apps" => kind,
        group => format!("{}.{group}", plural(&kind)),
    };
    let namespace = match object.namespace() {
        "" => String::new(),
        namespace => format!(" -n {namespace}"),
    };
    let (path, value) = located(object.at(""), field);
    let sign = match value {
        None | Some(Value::Null) => "empty: it is not set".to_owned(),
        Some(value) => format!("look for: {}", clip(&value.as_str().map_or_else(|| value.to_string(), str::to_owned))),
    };
    format!("kubectl get {resource} {}{namespace} -o jsonpath='{{{path}}}'  # {sign}", object.name())
}

/// A field as kubectl's JSONPath has it, and its value: `env[NAME]` is the variable of that name, and any other name in brackets
/// is a key, whose dots are escaped.
fn located<'a>(value: &'a Value, field: &str) -> (String, Option<&'a Value>) {
    let (mut path, mut at) = (String::new(), Some(value));
    let mut rest = field;
    while !rest.is_empty() {
        if let Some((key, tail)) = rest.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            rest = tail;
            if let Ok(index) = key.parse::<usize>() {
                at = at.and_then(|value| value.get(index));
                path.push_str(&format!("[{index}]"));
            } else if path.ends_with(".env") {
                let mut variables = at.and_then(Value::as_array).into_iter().flatten();
                at = variables.find(|variable| variable["name"] == key).and_then(|variable| variable.get("value"));
                path.push_str(&format!("[?(@.name==\"{key}\")].value"));
            } else {
                at = at.and_then(|value| value.get(key));
                path.push_str(&format!(".{}", key.replace('.', "\\.")));
            }
            continue;
        }
        rest = rest.trim_start_matches('.');
        let (name, tail) = rest.split_at(rest.find(['.', '[']).unwrap_or(rest.len()));
        at = at.and_then(|value| value.get(name));
        path.push_str(&format!(".{name}"));
        rest = tail;
    }
    (path, at)
}

fn plural(kind: &str) -> String {
    match kind.strip_suffix('y').filter(|_| !kind.ends_with("way")) {
        Some(stem) => format!("{stem}ies"),
        None => format!("{kind}s"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::report::Hint;

    #[test]
    fn names_and_paths_of_users_are_no_symptoms() {
        let symptoms_of = |to: &str, text: &str, cause: &str| {
            let finding = Finding::fail(CheckId::ChainHops, text, Hint::new(cause)).seam("service1", to, None).hop(to);
            symptoms(&finding)
        };
        for (to, text, cause) in [
            (
                "rate-limiter",
                "service1 cannot reach rate-limiter: refused at http://rate-limiter/404",
                "rate-limiter is not running",
            ),
            ("limit", "service1 cannot reach limit: connection refused", "limit: see its log"),
            ("attempts", "The connection from service1 to attempts ended", "attempts stopped"),
            (
                "service2",
                "connection refused at http://service2:404/timeout?x=503",
                "UPSTREAM is http://uh/UH, lane UH-1, not-denied",
            ),
        ] {
            assert_eq!(symptoms_of(to, text, cause), [Answer], "{text}");
        }
        for (text, cause, symptom) in [
            ("got 404 without a hop's reply", "", NotFound),
            ("service1 called a and got 503: no healthy upstream", "", NoPod),
            ("answered", "has no pod to send it to (503, flag UH)", NoPod),
            ("answered", "A circuit breaker is open (503, flag UO): limits are lower", Overload),
            ("answered 429: local_rate_limited", "", Overload),
            ("did not answer in time", "", Slow),
            ("answered", "gave up waiting (UT): too short", Slow),
            ("got 403: RBAC: access denied", "", Denied),
        ] {
            assert_eq!(symptoms_of("service2", text, cause), [Answer, symptom], "{text}");
        }
    }

    #[test]
    fn the_command_prints_the_field_and_says_what_to_look_for() {
        let metadata = json!({"name": "service2", "namespace": "shop", "annotations": {"a.io/x": "."}});
        let spec = json!({"containers": [{"env": [{"name": "ADDR", "value": "127.0.0.1:80"}]}]});
        let object = Object::new(json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata, "spec": spec}));
        for (field, path, sign) in [
            ("spec.containers[0].env[ADDR]", r#".spec.containers[0].env[?(@.name=="ADDR")].value"#, "look for: 127.0.0.1:80"),
            ("metadata.annotations[a.io/x]", r".metadata.annotations.a\.io/x", "look for: ."),
            ("spec.replicas", ".spec.replicas", "empty: it is not set"),
        ] {
            let wanted = format!("kubectl get deployment service2 -n shop -o jsonpath='{{{path}}}'  # {sign}");
            assert_eq!(show(&object, field), wanted);
        }
        let policy =
            Object::new(json!({"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy", "metadata": {"name": "p"}}));
        assert!(show(&policy, "spec.rules").starts_with("kubectl get authorizationpolicies.security.istio.io p -o"));
        let gateway = Object::new(json!({"apiVersion": "networking.istio.io/v1", "kind": "Gateway", "metadata": {"name": "g"}}));
        assert!(show(&gateway, "spec").starts_with("kubectl get gateways.networking.istio.io g "));
    }
}
