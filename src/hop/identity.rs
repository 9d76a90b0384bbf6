//! Who a hop is, and where it runs.

/// The identity of a hop in replies, logs and metrics.
#[derive(Debug, Clone, PartialEq)]
pub struct Identity {
    /// `--name`.
    pub name: String,
    /// `--service-version`.
    pub version: String,
    /// `--lane`; `base` is the baseline.
    pub lane: String,
    /// The host's name; in Kubernetes the pod's.
    pub hostname: String,
    /// Where it runs.
    pub place: Locality,
}

/// Where a hop runs, as far as the resource attributes name it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Locality {
    /// `k8s.node.name`.
    pub node: Option<String>,
    /// `cloud.availability_zone`.
    pub zone: Option<String>,
    /// `cloud.region`.
    pub region: Option<String>,
    /// `k8s.cluster.name`.
    pub cluster: Option<String>,
}

impl Locality {
    /// From `OTEL_RESOURCE_ATTRIBUTES`.
    pub(crate) fn of(attributes: &[(String, String)]) -> Self {
        let value =
            |key: &str| attributes.iter().find(|(known, value)| known == key && !value.is_empty()).map(|(_, v)| v.clone());
        Self {
            node: value("k8s.node.name"),
            zone: value("cloud.availability_zone"),
            region: value("cloud.region"),
            cluster: value("k8s.cluster.name"),
        }
    }
}

impl Identity {
    /// The attributes of every span that the configuration does not set.
    pub(crate) fn attributes(&self) -> Vec<(String, String)> {
        [("service.version", &self.version), ("lane", &self.lane), ("host.name", &self.hostname)]
            .map(|(key, value)| (key.to_owned(), value.clone()))
            .to_vec()
    }
}
