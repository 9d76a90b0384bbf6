//! How many files, sockets included, the process may have open.

/// Where the system has no such limit, or it cannot be read: what most systems allow at least.
const USUAL: u64 = 1024;

/// Raises the soft limit to the hard one, once, and returns it. The soft limit of many systems is 1,024 for the sake of
/// `select`, which is not used here.
pub(crate) fn raised_limit() -> u64 {
    static LIMIT: std::sync::OnceLock<u64> = std::sync::OnceLock::new();
    *LIMIT.get_or_init(|| rlimit::increase_nofile_limit(u64::MAX).unwrap_or(USUAL))
}

/// Raises the limit, and opens as many as a runtime needs and a few more: Tokio panics where it gets too few.
///
/// # Errors
///
/// The system's.
pub(crate) fn require_some() -> std::io::Result<()> {
    raised_limit();
    #[cfg(unix)]
    {
        const PAIRS: usize = 6;
        let pairs = std::iter::repeat_with(std::os::unix::net::UnixStream::pair).take(PAIRS);
        pairs.collect::<std::io::Result<Vec<_>>>()?;
    }
    Ok(())
}
