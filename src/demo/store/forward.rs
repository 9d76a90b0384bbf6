//! `--zipkin`: every span that reaches the store is passed on to another collector, so that its page can show the trace too.

use std::collections::HashMap;
use std::time::Duration;

use tokio::sync::broadcast::error::RecvError;
use tokio::sync::watch;

use crate::demo::control::until;
use crate::demo::store::Store;
use crate::net::client::builder;
use crate::net::hosts::redacted_url;
use crate::net::tls::client_config;
use crate::traces::TraceId;

/// Spans that arrive within this time go on in one batch.
const FLUSH_INTERVAL: Duration = Duration::from_millis(300);

/// Passes spans on until `stopped`. What the collector does not take is lost there and said once; the store still has it.
pub(crate) async fn forward(store: Store, base: String, stopped: watch::Receiver<bool>) {
    let Ok(client) = builder(client_config()).timeout(Duration::from_secs(5)).build() else { return };
    let url = format!("{base}/api/v2/spans");
    let mut arrivals = store.subscribe();
    // How many spans of each trace have gone on; a store only ever adds at the end.
    let mut gone: HashMap<TraceId, usize> = HashMap::new();
    let mut failing = false;
    let mut stopped = std::pin::pin!(until(stopped));
    loop {
        tokio::select! {
            () = &mut stopped => return,
            arrived = arrivals.recv() => if matches!(arrived, Err(RecvError::Closed)) { return },
        }
        tokio::time::sleep(FLUSH_INTERVAL).await;
        arrivals = arrivals.resubscribe();
        let ids = store.trace_ids();
        gone.retain(|id, _| ids.contains(id));
        let mut batch = Vec::new();
        for id in ids {
            let spans = store.trace(id).unwrap_or_default();
            let from = gone.insert(id, spans.len()).unwrap_or(0);
            batch.extend(spans.into_iter().skip(from));
        }
        if batch.is_empty() {
            continue;
        }
        let batch: Vec<_> = batch.iter().map(AsRef::as_ref).collect();
        let failure = match client.post(&url).json(&batch).send().await {
            Ok(answer) if answer.status().is_success() => None,
            Ok(answer) => Some(format!("answered {}", answer.status())),
            Err(error) => Some(crate::text::causes(&error.without_url())),
        };
        if let Some(error) = failure.as_ref().filter(|_| !failing) {
            let url = redacted_url(&url);
            tracing::warn!(url, error, "spans were not passed on");
        }
        failing = failure.is_some();
    }
}
