//! Objects as `kubectl get -o json` returns them, and the comparisons that Kubernetes and Istio make with them.

use serde_json::Value;

/// One object.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Object(Value);

/// What a pointer that leads nowhere means.
static NOTHING: Value = Value::Null;

impl Object {
    pub(crate) fn new(value: Value) -> Self {
        Self(value)
    }

    /// The value at a JSON pointer, `/spec/tls/mode`; null when there is none.
    pub(crate) fn at(&self, pointer: &str) -> &Value {
        at(&self.0, pointer)
    }

    pub(crate) fn text(&self, pointer: &str) -> &str {
        text(&self.0, pointer)
    }

    pub(crate) fn list(&self, pointer: &str) -> &[Value] {
        list(&self.0, pointer)
    }

    pub(crate) fn texts(&self, pointer: &str) -> Vec<&str> {
        texts(&self.0, pointer)
    }

    pub(crate) fn kind(&self) -> &str {
        self.text("/kind")
    }

    pub(crate) fn name(&self) -> &str {
        self.text("/metadata/name")
    }

    pub(crate) fn namespace(&self) -> &str {
        self.text("/metadata/namespace")
    }

    /// `DestinationRule httpserver/service2`.
    pub(crate) fn title(&self) -> String {
        match self.namespace() {
            "" => format!("{} {}", self.kind(), self.name()),
            namespace => format!("{} {namespace}/{}", self.kind(), self.name()),
        }
    }

    pub(crate) fn label(&self, name: &str) -> &str {
        self.at("/metadata/labels").get(name).and_then(Value::as_str).unwrap_or_default()
    }

    pub(crate) fn annotation(&self, name: &str) -> &str {
        self.at("/metadata/annotations").get(name).and_then(Value::as_str).unwrap_or_default()
    }

    /// RFC 3339, so that the order of the texts is the order of the times; names decide between equal ones, as in Istio.
    pub(crate) fn age_order(&self) -> (&str, &str, &str) {
        (self.text("/metadata/creationTimestamp"), self.name(), self.namespace())
    }

    /// Whether an object holds for this pod by its `targetRefs`, where it has any: those of a Gateway name the pods that Istio made for it.
    pub(crate) fn is_targeted_by(&self, object: &Object) -> bool {
        let refs = || object.list("/spec/targetRefs").iter().chain([object.at("/spec/targetRef")]).filter(|one| one.is_object());
        let is_own = |one: &Value| {
            text(one, "/kind") == "Gateway"
                && object.namespace() == self.namespace()
                && text(one, "/name") == self.label("gateway.networking.k8s.io/gateway-name")
        };
        refs().next().is_none() || refs().any(is_own)
    }

    /// Whether this object's labels are among those that `selector` asks for. An empty selector asks for nothing and selects all.
    pub(crate) fn is_selected_by(&self, selector: &Value) -> bool {
        is_selected(self.at("/metadata/labels"), selector)
    }
}

pub(crate) fn at<'a>(value: &'a Value, pointer: &str) -> &'a Value {
    value.pointer(pointer).unwrap_or(&NOTHING)
}

pub(crate) fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    at(value, pointer).as_str().unwrap_or_default()
}

pub(crate) fn list<'a>(value: &'a Value, pointer: &str) -> &'a [Value] {
    at(value, pointer).as_array().map_or(&[], Vec::as_slice)
}

pub(crate) fn texts<'a>(value: &'a Value, pointer: &str) -> Vec<&'a str> {
    list(value, pointer).iter().filter_map(Value::as_str).collect()
}

/// A number, or a number in quotes.
pub(crate) fn number(value: &Value) -> Option<u64> {
    value.as_u64().or_else(|| value.as_str()?.parse().ok())
}

/// `a=b, c=d`.
pub(crate) fn labels_text(labels: &Value) -> String {
    let labels = labels.as_object().into_iter().flatten();
    labels.map(|(name, value)| format!("{name}={}", value.as_str().unwrap_or_default())).collect::<Vec<_>>().join(", ")
}

/// Whether `labels` has every pair of `wanted`.
pub(crate) fn is_selected(labels: &Value, wanted: &Value) -> bool {
    wanted.as_object().into_iter().flatten().all(|(name, value)| labels.get(name) == Some(value))
}

/// A `LabelSelector`: labels and expressions.
pub(crate) fn is_matched(labels: &Value, selector: &Value) -> bool {
    let meets = |expression: &Value| {
        let value = labels.get(text(expression, "/key")).and_then(Value::as_str);
        let listed = value.is_some_and(|value| texts(expression, "/values").contains(&value));
        match text(expression, "/operator") {
            "In" => listed,
            "NotIn" => !listed,
            "Exists" => value.is_some(),
            _ => value.is_none(),
        }
    };
    is_selected(labels, at(selector, "/matchLabels")) && list(selector, "/matchExpressions").iter().all(meets)
}

/// A host in an Istio object of `namespace` as a full name. Only a name without a dot is completed: `service1.shop` stays as it is,
/// and is the name of no Service.
pub(crate) fn full_host(host: &str, namespace: &str) -> String {
    match host.contains(['.', '*']) || host.is_empty() {
        true => host.to_owned(),
        false => service_host(host, namespace),
    }
}

pub(crate) fn service_host(name: &str, namespace: &str) -> String {
    format!("{name}.{namespace}.svc.cluster.local")
}

/// Name and namespace of the Service that a client in `namespace` reaches under this host; `None` for a name outside the cluster.
pub(crate) fn service_of<'a>(host: &'a str, namespace: &'a str) -> Option<(&'a str, &'a str)> {
    let parts: Vec<&str> = host.split('.').collect();
    match parts[..] {
        [name] if !name.is_empty() => Some((name, namespace)),
        [name, namespace] | [name, namespace, "svc"] | [name, namespace, "svc", "cluster", "local"] => Some((name, namespace)),
        _ => None,
    }
}

/// Whether a host pattern (`*`, `*.example.com`, a name) covers `host`.
pub(crate) fn covers(pattern: &str, host: &str) -> bool {
    match pattern.strip_prefix('*') {
        Some("") => true,
        Some(suffix) => host.len() > suffix.len() && host.ends_with(suffix),
        None => pattern.eq_ignore_ascii_case(host),
    }
}

/// Whether an object that is exported to `export` (empty: to everybody) from `own` is seen in `namespace`.
pub(crate) fn is_exported(export: &[&str], own: &str, namespace: &str) -> bool {
    let to = |export: &&str| *export == "*" || *export == namespace || (*export == "." && own == namespace);
    export.is_empty() || export.iter().any(to)
}

/// Seconds of a duration such as `1.5s`, `100ms`, `1m30s`; `None` when it is none.
pub(crate) fn seconds(text: &str) -> Option<f64> {
    crate::values::parse_duration(text).ok().map(|duration| duration.as_secs_f64())
}

/// A DNS subdomain (RFC 1123): labels with dots between, as Secrets and pods may be named. Only such names and labels become
/// arguments of a command.
pub(crate) fn is_subdomain(text: &str) -> bool {
    text.len() <= 253 && text.split('.').all(crate::values::is_label)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::values::is_label;

    #[test]
    fn only_names_of_rfc_1123_become_arguments() {
        for name in ["service1", "a", "service1-7d4b9c6f5-x2x5z", "1"] {
            assert!(is_label(name), "{name}");
        }
        for name in ["", "-n", "--all", "a_b", "A", "a.b", "a;b", "a b", "$(x)", &"a".repeat(64), "a-", "a\n"] {
            assert!(!is_label(name), "{name}");
        }
        assert!(is_subdomain("my.pod-1") && !is_subdomain("a..b") && !is_subdomain("-a.b") && !is_subdomain("a.b/c"));
    }

    #[test]
    fn only_a_name_without_a_dot_is_completed() {
        assert_eq!(full_host("service1", "shop"), "service1.shop.svc.cluster.local");
        assert_eq!(full_host("service1.shop", "other"), "service1.shop");
        assert_eq!(service_of("service1.shop", "other"), Some(("service1", "shop")));
        assert_eq!(service_of("service1", "other"), Some(("service1", "other")));
        assert_eq!(service_of("api.example.com", "other"), None);
    }

    #[test]
    fn selectors_and_patterns_are_compared_as_kubernetes_and_istio_do() {
        let labels = json!({"app": "a", "version": "v1"});
        assert!(
            is_selected(&labels, &json!({"app": "a"})) && is_selected(&labels, &json!({})) && is_selected(&labels, &Value::Null)
        );
        assert!(!is_selected(&labels, &json!({"app": "b"})) && !is_selected(&Value::Null, &json!({"app": "a"})));
        let selector = json!({"matchExpressions": [{"key": "app", "operator": "In", "values": ["a", "b"]}, {"key": "x", "operator": "DoesNotExist"}]});
        assert!(is_matched(&labels, &selector) && !is_matched(&json!({"x": "1", "app": "a"}), &selector));
        assert!(covers("*.example.com", "a.example.com") && !covers("*.example.com", "example.com") && covers("*", "a"));
        assert!(is_exported(&[], "a", "b") && is_exported(&["."], "a", "a") && !is_exported(&["."], "a", "b"));
        assert!(is_exported(&["*"], "a", "b") && is_exported(&["b"], "a", "b"));
    }
}
