//! Why a command stops before it has a result.

use std::fmt;

use crate::config::ConfigError;
use crate::hop::app::BindError;

/// Why a command stops before it has a result, in one line for standard error.
#[derive(Debug)]
pub enum CommandFailure {
    /// Wrong usage or configuration.
    Usage(String),
    /// Something that it needs cannot be had: an address, a file descriptor, an answer.
    Stopped(String),
}

impl CommandFailure {
    /// 2 for wrong usage, else 1.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) => 2,
            Self::Stopped(_) => 1,
        }
    }
}

impl fmt::Display for CommandFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Usage(line) | Self::Stopped(line)) = self;
        f.write_str(line)
    }
}

impl std::error::Error for CommandFailure {}

impl From<ConfigError> for CommandFailure {
    fn from(error: ConfigError) -> Self {
        Self::Usage(error.to_string())
    }
}

impl From<BindError> for CommandFailure {
    fn from(error: BindError) -> Self {
        Self::Stopped(error.to_string())
    }
}
