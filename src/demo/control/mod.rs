//! The running hops as the page shows and changes them. In reading order: `state` (the hops and the demo's own sender), `live`
//! (their figures), `exchanges` (the requests as they passed), `seams` (what they lost between two hops) and `orders` (the one endpoint
//! that changes something).

pub(crate) mod exchanges;
pub(crate) mod live;
pub(crate) mod orders;
pub(crate) mod seams;
pub(crate) mod state;

use tokio::sync::watch;

/// Resolves when `stopped` becomes true, or when nobody can set it any more.
pub(crate) async fn until(mut stopped: watch::Receiver<bool>) {
    let _ = stopped.wait_for(|stopped| *stopped).await;
}
