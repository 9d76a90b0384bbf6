//! Supervises one hop of the demo.

use std::sync::Arc;

use tokio::sync::watch;

use crate::demo::control::exchanges::HopWatch;
use crate::demo::control::state::DemoState;
use crate::demo::control::until;
use crate::hop::app::{App, Output};
use crate::hop::config::HopConfig;
use crate::server::shutdown::Stop;

/// Supervises one hop; restarts it when the page asks. `at` is its index in the chain.
pub(crate) async fn supervise(
    mut app: App,
    mut config: HopConfig,
    output: Output,
    state: Arc<DemoState>,
    at: usize,
    stopped: watch::Receiver<bool>,
) {
    let hop = &state.hops[at];
    let mut running = hop.running.subscribe();
    loop {
        app.watch(Arc::new(HopWatch {
            gauge: hop.gauge.clone(),
            exchanges: state.exchanges.clone(),
            service: hop.name.clone(),
            is_front: !state.hops.iter().any(|caller| caller.calls.contains(&(at + 1))),
        }));
        let (mut ordered, stop) = (running.clone(), until(stopped.clone()));
        app.run(async move {
            tokio::select! {
                () = stop => {}
                _ = ordered.wait_for(|running| !running) => {}
            }
            Stop::Now
        })
        .await;
        app = loop {
            tokio::select! {
                // At the end of the demo the hop still counts as running: it is not to be started again.
                biased;
                () = until(stopped.clone()) => return,
                _ = running.wait_for(|running| *running) => {}
            }
            // Faults that were changed while the hop was stopped apply, too.
            config.faults = hop.faults().config();
            config.drop_headers = hop.dropped().names();
            match App::bind(config.clone(), &output).await {
                Ok(app) => break app,
                Err(error) => {
                    tracing::warn!(hop = hop.name, %error, "the hop cannot be started again");
                    hop.running.send_replace(false);
                    state.altered.send_replace(());
                }
            }
        };
        hop.restarted(&app);
        state.altered.send_replace(());
    }
}
