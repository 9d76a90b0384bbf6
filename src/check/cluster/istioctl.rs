//! `--cluster-istioctl`: what `istioctl analyze` says, and what the callers' proxies hold for the hops that they call.

use serde_json::Value;

use crate::check::cluster::command::Tool;
use crate::check::cluster::object::{is_subdomain, text};
use crate::check::cluster::path::Path;
use crate::check::cluster::rules::has_sidecar;
use crate::report::{CheckId, Finding};
use crate::text::counted;

/// Lines of one command that are shown.
const SHOWN: usize = 12;

pub(super) async fn findings(tool: &Tool, namespace: &str, path: Option<&Path<'_>>) -> Vec<Finding> {
    let mut out = vec![analyze(tool, namespace).await];
    for hop in path.into_iter().flat_map(|path| &path.hops) {
        let Some(path) = path else { continue };
        let caller = path.calling_pods(hop).iter().find(|pod| hop.caller.is_none() || has_sidecar(pod));
        let host = hop.full_name();
        let Some(caller) = caller.filter(|pod| is_subdomain(pod.name()) && is_subdomain(&host)) else { continue };
        let target = format!("{}.{}", caller.name(), caller.namespace());
        let words = ["proxy-config", "clusters", target.as_str(), "--fqdn", host.as_str()];
        let line = tool.line(&words);
        out.push(match tool.run(&words).await {
            Ok(table) => {
                let table = String::from_utf8_lossy(&table).into_owned();
                let rows = table.lines().count().saturating_sub(1);
                let text = format!(
                    "{line}: {}",
                    if rows == 0 { format!("this proxy does not know {host}") } else { counted(rows, "cluster") }
                );
                Finding::skip(CheckId::ClusterIstioctl, text).lines(table.lines().take(SHOWN).map(str::to_owned))
            }
            Err(error) => Finding::skip(CheckId::ClusterIstioctl, format!("{line}: {error}")),
        });
    }
    out
}

async fn analyze(tool: &Tool, namespace: &str) -> Finding {
    let words = ["analyze", "-n", namespace, "-o", "json"];
    let line = tool.line(&words);
    let messages = match tool.run(&words).await {
        Ok(json) => serde_json::from_slice::<Value>(&json).ok().and_then(|value| value.as_array().cloned()).unwrap_or_default(),
        Err(error) => return Finding::skip(CheckId::ClusterIstioctl, format!("{line}: {error}")),
    };
    if messages.is_empty() {
        return Finding::pass(CheckId::ClusterIstioctl, format!("{line}: no message"));
    }
    let shown = messages.iter().take(SHOWN).map(|message| {
        format!(
            "{} {} {}: {}",
            text(message, "/level"),
            text(message, "/code"),
            text(message, "/origin"),
            text(message, "/message")
        )
    });
    Finding::skip(CheckId::ClusterIstioctl, format!("{line}: {}", counted(messages.len(), "message"))).lines(shown)
}
