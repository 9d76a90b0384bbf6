//! The table of claims of a test.

use std::panic::AssertUnwindSafe;

use futures_util::FutureExt as _;

/// What was claimed so far, and what was seen. A claim that fails does not end the test: the others are still looked at.
#[derive(Debug, Default)]
pub(crate) struct Claims(Vec<(String, Result<String, String>)>);

impl Claims {
    /// `check` returns what it saw, or panics with what is wrong.
    pub(crate) async fn claim(&mut self, text: impl Into<String>, check: impl Future<Output = String>) {
        let seen = AssertUnwindSafe(check).catch_unwind().await.map_err(|panic| {
            let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
            text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "a panic without a text".to_owned())
        });
        self.record(text, seen);
    }

    /// A claim that was looked at already: what it is, and what speaks against it.
    pub(crate) fn holds(&mut self, text: impl Into<String>, held: bool, otherwise: impl std::fmt::Debug) {
        self.record(text, if held { Ok(String::new()) } else { Err(format!("{otherwise:?}")) });
    }

    fn record(&mut self, text: impl Into<String>, seen: Result<String, String>) {
        let text = text.into();
        match &seen {
            Ok(_) => println!("  ok    {text}"),
            Err(why) => println!("  FAIL  {text}\n          {why}"),
        }
        self.0.push((text, seen));
    }

    /// Prints the table, in one piece, and fails the test when a claim failed, or when there was none: a name that was chosen
    /// wrongly is no success.
    pub(crate) fn end(self) {
        let failed = self.0.iter().filter(|(_, seen)| seen.is_err()).count();
        let row = |(text, seen): &(String, Result<String, String>)| match seen {
            Ok(seen) if seen.is_empty() => format!("| {text} | ok |\n"),
            Ok(seen) => format!("| {text} | ok: {seen} |\n"),
            Err(_) => format!("| {text} | **failed** |\n"),
        };
        let rows: String = self.0.iter().map(row).collect();
        println!("\n| claim | result |\n|---|---|\n{rows}\n{} claims, {failed} failed", self.0.len());
        assert_eq!(failed, 0, "claims failed");
        assert!(!self.0.is_empty(), "nothing was looked at: is a name that was chosen misspelt?");
    }
}

/// Asserts that they are equal; returns what was seen.
pub(crate) fn same<T: PartialEq + std::fmt::Debug>(want: T, got: T) -> String {
    assert_eq!(got, want, "got, wanted");
    format!("{got:?}")
}
