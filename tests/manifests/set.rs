//! Manifests as one test sees them: parsed, named, and laid over each other as `kubectl apply` does.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{LazyLock, Mutex, PoisonError};

use serde_json::Value;

/// One object of a manifest, and the file it stands in.
#[derive(Clone, Debug)]
pub(crate) struct Doc {
    pub(crate) file: String,
    pub(crate) value: Value,
}

impl Doc {
    pub(crate) fn kind(&self) -> &str {
        text(&self.value, "/kind")
    }

    pub(crate) fn name(&self) -> &str {
        text(&self.value, "/metadata/name")
    }

    pub(crate) fn namespace(&self) -> &str {
        text(&self.value, "/metadata/namespace")
    }

    /// `Kind/name in file`, for findings.
    pub(crate) fn at(&self) -> String {
        format!("{}/{} in {}", self.kind(), self.name(), self.file)
    }

    /// The labels of the pods that a Deployment makes.
    pub(crate) fn pod_labels(&self) -> &Value {
        at(&self.value, "/spec/template/metadata/labels")
    }

    /// The only container of a Deployment's pods.
    pub(crate) fn container(&self) -> &Value {
        at(&self.value, "/spec/template/spec/containers/0")
    }

    /// The value of a variable that the Deployment's container sets to a literal.
    pub(crate) fn env(&self, name: &str) -> Option<&str> {
        items(self.container(), "/env").find(|env| text(env, "/name") == name)?.get("value")?.as_str()
    }
}

/// What is applied to one cluster at one time.
#[derive(Clone, Debug)]
pub(crate) struct Set {
    pub(crate) name: String,
    pub(crate) docs: Vec<Doc>,
}

impl Set {
    /// Reads files in this order; an object of the same kind, namespace and name replaces the earlier one.
    pub(crate) fn of(name: &str, files: &[&str]) -> Set {
        let mut set = Set { name: name.to_owned(), docs: Vec::new() };
        for file in files {
            for doc in read(file) {
                set.apply(doc);
            }
        }
        set
    }

    pub(crate) fn apply(&mut self, doc: Doc) {
        let key = |d: &Doc| (d.kind().to_owned(), d.namespace().to_owned(), d.name().to_owned());
        match self.docs.iter_mut().find(|old| key(old) == key(&doc)) {
            Some(old) => *old = doc,
            None => self.docs.push(doc),
        }
    }

    pub(crate) fn all<'a>(&'a self, kind: &'a str) -> impl Iterator<Item = &'a Doc> {
        self.docs.iter().filter(move |doc| doc.kind() == kind)
    }

    /// The Deployments of our server.
    pub(crate) fn hops(&self) -> impl Iterator<Item = &Doc> {
        self.all("Deployment").filter(|doc| text(doc.container(), "/name") == "httpserver")
    }

    pub(crate) fn find(&self, kind: &str, namespace: &str, name: &str) -> Option<&Doc> {
        self.docs.iter().find(|doc| doc.kind() == kind && doc.namespace() == namespace && doc.name() == name)
    }

    pub(crate) fn find_mut(&mut self, kind: &str, name: &str) -> &mut Value {
        let doc = self.docs.iter_mut().find(|doc| doc.kind() == kind && doc.name() == name);
        &mut doc.unwrap_or_else(|| panic!("no {kind}/{name} in the set {}", self.name)).value
    }

    /// The Service that a host of a route means: `name`, `name.namespace` or the full name.
    pub(crate) fn service(&self, host: &str, from_namespace: &str) -> Option<&Doc> {
        let mut parts = host.split('.');
        let name = parts.next().unwrap_or_default();
        let namespace = parts.next().unwrap_or(from_namespace);
        let rest: Vec<&str> = parts.collect();
        let local = rest.is_empty() || rest == ["svc", "cluster", "local"];
        if local { self.find("Service", namespace, name) } else { None }
    }

    /// The Deployments whose pods a Service selects.
    pub(crate) fn behind<'a>(&'a self, service: &'a Doc) -> impl Iterator<Item = &'a Doc> {
        let selector = at(&service.value, "/spec/selector");
        self.all("Deployment").filter(move |d| d.namespace() == service.namespace() && holds(selector, d.pod_labels()))
    }
}

/// The objects of one file, relative to the top of the repository. Each file is parsed once.
pub(crate) fn read(file: &str) -> Vec<Doc> {
    static PARSED: LazyLock<Mutex<HashMap<String, Vec<Doc>>>> = LazyLock::new(Mutex::default);
    let mut parsed = PARSED.lock().unwrap_or_else(PoisonError::into_inner);
    parsed.entry(file.to_owned()).or_insert_with(|| parse(file)).clone()
}

fn parse(file: &str) -> Vec<Doc> {
    let text = std::fs::read_to_string(top().join(file)).unwrap_or_else(|e| panic!("{file}: {e}"));
    let values: Vec<Value> = serde_saphyr::from_multiple(&text).unwrap_or_else(|e| panic!("{file}: {e}"));
    values.into_iter().filter(|v| !v.is_null()).map(|value| Doc { file: file.to_owned(), value }).collect()
}

/// Every manifest below a folder, sorted: neither kustomizations nor files that configure something else.
pub(crate) fn files(folder: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![top().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("a folder of manifests").map(|e| e.expect("an entry").path()) {
            let name = entry.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if entry.is_dir() && name != "local" {
                folders.push(entry);
            } else if name.ends_with(".yaml") && name != "kustomization.yaml" && name != "config.yaml" {
                found.push(entry.strip_prefix(top()).expect("below the top").to_string_lossy().into_owned());
            }
        }
    }
    found.sort();
    found
}

pub(crate) fn top() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}

/// The value at a JSON pointer, or null.
pub(crate) fn at<'a>(value: &'a Value, pointer: &str) -> &'a Value {
    value.pointer(pointer).unwrap_or(&Value::Null)
}

/// The string at a JSON pointer, or nothing.
pub(crate) fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    at(value, pointer).as_str().unwrap_or_default()
}

/// The items of the list at a JSON pointer, or none.
pub(crate) fn items<'a>(value: &'a Value, pointer: &str) -> impl Iterator<Item = &'a Value> {
    at(value, pointer).as_array().into_iter().flatten()
}

/// The strings of the list at a JSON pointer.
pub(crate) fn strings<'a>(value: &'a Value, pointer: &str) -> Vec<&'a str> {
    items(value, pointer).filter_map(Value::as_str).collect()
}

/// True if `labels` has every pair of `selector`; an empty selector selects nothing here.
pub(crate) fn holds(selector: &Value, labels: &Value) -> bool {
    selector.as_object().is_some_and(|s| !s.is_empty() && s.iter().all(|(key, value)| labels.get(key) == Some(value)))
}

/// Seconds of `500ms`, `15s`, `1m`; also of the upper end of a range such as `10ms..2s`.
pub(crate) fn seconds(duration: &str) -> f64 {
    let last = duration.rsplit("..").next().unwrap_or(duration);
    let digits = last.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let scale = match &last[digits.len()..] {
        "ms" => 0.001,
        "s" | "" => 1.0,
        "m" => 60.0,
        unit => panic!("a duration with the unit {unit:?}: {duration}"),
    };
    digits.parse::<f64>().unwrap_or_else(|_| panic!("a duration: {duration:?}")) * scale
}
