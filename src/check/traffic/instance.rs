//! Whether something was at one instance of a hop alone.

use crate::check::traffic::sample::{HopSamples, Sample};

/// The one instance of a hop at which all of this was, when its siblings answered so often that this is no chance, and their names.
pub(super) fn only_at<'a>(name: &str, at: impl Iterator<Item = &'a str>, hops: &[HopSamples<'_>]) -> Option<(String, String)> {
    const CHANCE: f64 = 1e-4;
    let at: Vec<&str> = at.collect();
    let host = *at.first().filter(|host| !host.is_empty())?;
    let hop = hops.iter().find(|hop| hop.name == name).filter(|_| at.iter().all(|other| *other == host))?;
    let hosts = hop.tally(|answer| &answer.hop.hostname);
    let share = *hosts.get(host)? as f64 / hop.answers.len() as f64;
    let others: Vec<&str> = hosts.keys().copied().filter(|other| *other != host).collect();
    (!others.is_empty() && share.powi(i32::try_from(at.len()).unwrap_or(i32::MAX)) < CHANCE)
        .then(|| (host.to_owned(), others.join(", ")))
}

/// The same for requests and a hop that each of them passed once.
pub(super) fn struck_at<'a>(
    name: &'a str,
    struck: impl Iterator<Item = &'a Sample>,
    hops: &[HopSamples<'_>],
) -> Option<(String, String)> {
    let host = |sample: &'a Sample| {
        let mut answers = sample.hops.iter().filter(|answer| answer.hop.name == name);
        answers.next().filter(|_| answers.next().is_none()).map_or("", |answer| answer.hop.hostname.as_str())
    };
    only_at(name, struck.map(host), hops)
}

/// Where all of something was, if at one instance.
pub(super) fn all_at(at: Option<&(String, String)>) -> String {
    at.map_or_else(String::new, |(host, others)| format!(". All of them at {host}, and none at {others}"))
}
