//! Files that options name.

use std::io::{self, Read};
use std::path::Path;

/// What a file has, or for `-` standard input.
///
/// # Errors
///
/// Why it cannot be read; that it has more than `max_mib` MiB. The file is for the caller to name.
pub(crate) fn read_input(path: &Path, max_mib: u64) -> Result<Vec<u8>, String> {
    let max = max_mib << 20;
    let read = |source: &mut dyn Read| {
        let mut bytes = Vec::new();
        source.take(max + 1).read_to_end(&mut bytes).map(|_| bytes)
    };
    let bytes = if path == Path::new("-") {
        read(&mut io::stdin())
    } else {
        std::fs::File::open(path).and_then(|mut file| read(&mut file))
    };
    let bytes = bytes.map_err(|error| error.to_string())?;
    if bytes.len() as u64 > max { Err(format!("larger than {max_mib} MiB")) } else { Ok(bytes) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_without_an_end_is_read_up_to_the_bound() {
        assert_eq!(read_input(Path::new("/dev/zero"), 1).unwrap_err(), "larger than 1 MiB");
        assert_eq!(read_input(Path::new("/dev/null"), 1), Ok(Vec::new()));
        assert!(read_input(Path::new("/no/such/file"), 1).is_err());
    }
}
