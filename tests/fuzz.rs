//! A short, deterministic run of the fuzz targets: the saved corpus as it is, and some thousand mutations of it. The long run
//! is `scripts/fuzz.sh`.

use std::path::Path;

use httpserver::fuzzing::{PARSERS, run};

/// Damaged inputs for each parser.
const MUTATIONS: usize = 20_000;

/// xorshift64*: the same numbers on every run, so that a failure comes back.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self, below: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % below.max(1)
    }

    /// Some small damage: a byte changed, added, removed, a piece doubled, cut off or taken from another input.
    fn damage(&mut self, input: &mut Vec<u8>, other: &[u8]) {
        const TELLING: &[u8] = b"\0\t\n\r ,;:=-\"\\%./[]{}+0189afxz\x7f\x80\xff";
        for _ in 0..=self.next(4) {
            let at = self.next(input.len() + 1);
            let end = at + self.next(input.len() - at + 1);
            match self.next(6) {
                0 if at < input.len() => input[at] = TELLING[self.next(TELLING.len())],
                1 => input.insert(at, TELLING[self.next(TELLING.len())]),
                2 => drop(input.drain(at..end)),
                3 => {
                    let piece = input[at..end].to_vec();
                    input.splice(at..at, piece);
                }
                4 => input.truncate(at),
                _ => {
                    let from = self.next(other.len() + 1);
                    input.splice(at..at, other[from..].iter().copied().take(64));
                }
            }
            input.truncate(64 << 10);
        }
    }
}

fn corpus(parser: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(parser);
    let mut files: Vec<_> = std::fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    let mut inputs: Vec<_> = files.into_iter().map(|path| std::fs::read(path).unwrap()).collect();
    if parser == "certificate" {
        // Certificates are never kept in the repository.
        inputs.push(rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap().cert.der().to_vec());
    }
    assert!(!inputs.is_empty(), "{parser} has no corpus");
    inputs
}

#[test]
fn no_parser_panics_or_breaks_its_promises_on_the_corpus_and_on_damaged_copies_of_it() {
    for (parser, _) in PARSERS {
        let inputs = corpus(parser);
        let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15);
        for (i, input) in inputs.iter().enumerate() {
            run(parser, input);
            for _ in 0..MUTATIONS.div_ceil(inputs.len()) {
                let mut damaged = input.clone();
                numbers.damage(&mut damaged, &inputs[(i + 1) % inputs.len()]);
                let result = std::panic::catch_unwind(|| run(parser, &damaged));
                assert!(result.is_ok(), "{parser} on {:?}", String::from_utf8_lossy(&damaged));
            }
        }
    }
}
