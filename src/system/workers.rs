//! How many threads run the tasks of the process.

/// The variable that Tokio reads, too; it panics when it cannot use the value.
pub(crate) const VARIABLE: &str = "TOKIO_WORKER_THREADS";
/// More threads than this only cost memory.
const MAX: usize = 1024;

/// As many as the variable says, else as many as the process has processors.
///
/// # Errors
///
/// What is accepted.
pub(crate) fn count(variable: Option<&str>) -> Result<usize, String> {
    match variable.filter(|text| !text.is_empty()) {
        Some(text) => text.parse().ok().filter(|count| (1..=MAX).contains(count)).ok_or_else(|| format!("accepted: 1 to {MAX}")),
        None => Ok(std::thread::available_parallelism().map_or(1, Into::into)),
    }
}
