//! Faults and breaks as JSON names them: what the admin API and the demo's page are ordered.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::hop::fault::FaultConfig;
use crate::values::positive_duration;

/// Faults and breaks as JSON names them: how the admin API and the demo's page change them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct FaultsForm {
    /// As `--fault` has them.
    #[serde(default)]
    pub(crate) faults: Vec<String>,
    /// As `--break` has them.
    #[serde(default)]
    pub(crate) breaks: Vec<String>,
    /// After this time those of the start come back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) ttl: Option<String>,
}

impl From<&FaultConfig> for FaultsForm {
    fn from(config: &FaultConfig) -> Self {
        Self {
            faults: config.faults.iter().map(ToString::to_string).collect(),
            breaks: config.breaks.iter().map(ToString::to_string).collect(),
            ttl: None,
        }
    }
}

impl FaultsForm {
    /// The configuration with these in place of the faults and breaks of `now`, and for how long.
    ///
    /// # Errors
    ///
    /// What cannot be read, and what is accepted.
    pub(crate) fn read(&self, now: &FaultConfig) -> Result<(FaultConfig, Option<Duration>), String> {
        const MOST: usize = 32;
        if self.faults.len() + self.breaks.len() > MOST {
            return Err(format!("more than {MOST} faults and breaks; so many are accepted"));
        }
        let ttl = self.ttl.as_deref().map(|ttl| positive_duration(ttl).map_err(|error| format!("ttl '{ttl}': {error}")));
        let config = FaultConfig {
            latency: now.latency.clone(),
            faults: self.faults.iter().map(|fault| fault.parse()).collect::<Result<_, String>>()?,
            breaks: self.breaks.iter().map(|broken| broken.parse()).collect::<Result<_, String>>()?,
        };
        Ok((config, ttl.transpose()?))
    }
}
