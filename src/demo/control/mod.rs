//! The running hops as the page shows and changes them. In reading order: `panel` (the hops and the demo's own sender), `live`
//! (their figures), `orders` (the one endpoint that changes something).

pub(crate) mod live;
pub(crate) mod orders;
pub(crate) mod plan;
pub(crate) mod state;

use tokio::sync::watch;

/// Resolves when `stopped` becomes true, or when nobody can set it any more.
pub(crate) async fn until(mut stopped: watch::Receiver<bool>) {
    let _ = stopped.wait_for(|stopped| *stopped).await;
}
