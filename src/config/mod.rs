//! Flags and variables: what clap reads for each command, and the plain options that the rooms below are made from.
//!
//! `serve`, `demo` and `store` have a file each, and what the last two share is `page`; `otel` reads the variables that OpenTelemetry defines and that have no flag. The options
//! of `check` and `trace` stand with their commands. Imports `hop` and the floors below it, none of which imports `config`.

mod demo;
mod failure;
mod fan_out;
mod misspelt;
mod otel;
mod page;
mod serve;
mod store;

use std::borrow::Cow;
use std::fmt;

use crate::net::hosts::redacted_input;
use crate::net::tls::InvalidFile;

pub use demo::{AtHop, CarriedName, DemoArgs};
pub use failure::CommandFailure;
pub(crate) use misspelt::warn_of_misspelt_variables;
pub use otel::{Environment, ExporterName};
pub(crate) use otel::{caller_exporters, pairs, process_variable};
pub use page::PageArgs;
pub use serve::{HealthArgs, ServeArgs, Verbosity};
pub use store::StoreArgs;

/// A configuration that nothing can be started with: one line that names what to change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConfigError {
    /// The value of a flag or variable is not accepted.
    Value {
        /// The flag and its variable, or the variable.
        name: String,
        /// The value as it was given; a placeholder where it may be a secret.
        value: String,
        /// Why it is not accepted, and what is.
        reason: String,
    },
    /// An option that means nothing without another one.
    Incomplete {
        /// The option that is set.
        option: &'static str,
        /// What it needs.
        needs: &'static str,
    },
    /// A file with certificates or a key cannot be used; the text names file and flag.
    File(InvalidFile),
}

impl ConfigError {
    pub(crate) fn value(name: &str, value: &str, reason: impl Into<String>) -> Self {
        Self::Value { name: name.to_owned(), value: value.to_owned(), reason: reason.into() }
    }
}

/// A value for an error message, without what could be a password. In a fault and a break the sign `@` stands before a rate.
pub(crate) fn shown_value<'a>(option: &str, value: &'a str) -> Cow<'a, str> {
    let has_rate = option.contains("FAULT") || option.contains("BREAK");
    if has_rate { value.into() } else { redacted_input(value) }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Value { name, value, reason } => {
                write!(f, "invalid value '{}' for {name}: {reason}", shown_value(name, value).escape_debug())
            }
            Self::Incomplete { option, needs } => write!(f, "{option} needs {needs}"),
            Self::File(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for ConfigError {}
