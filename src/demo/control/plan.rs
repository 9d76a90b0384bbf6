//! Latency and faults of a hop as the page reads and writes them.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::hop::fault::{Fault, FaultConfig, FaultKind};
use crate::hop::latency::Latency;
use crate::hop::reply::milliseconds;

/// The longest latency and delay that can be set from the page.
pub(crate) const MAX_DELAY: Duration = Duration::from_secs(60);

/// Latency and faults as the page's sliders read and write them; faults of other kinds, and breaks, are left as they are.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PlanForm {
    /// From and to, milliseconds, uniform between them; null for a curve of percentiles, which the page leaves as it is.
    latency_ms: Option<[f64; 2]>,
    faults: Vec<FaultForm>,
}

/// One fault; `percent` of the requests get it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum FaultForm {
    Abort { status: u16, percent: f64 },
    Delay { ms: f64, percent: f64 },
}

impl From<&FaultConfig> for PlanForm {
    fn from(plan: &FaultConfig) -> Self {
        let latency_ms = match plan.latency {
            Latency::None => Some([0.0, 0.0]),
            Latency::Fixed(delay) => Some([milliseconds(delay); 2]),
            Latency::Uniform(low, high) => Some([milliseconds(low), milliseconds(high)]),
            Latency::Quantiles(_) => None,
        };
        let faults = plan.faults.iter().filter_map(|fault| {
            // Shares are halves, tenths and the like: what was 7 % must not come back as 7.000000000000001.
            let percent = (fault.share * 1e8).round() / 1e6;
            match fault.kind {
                FaultKind::Abort(status) => Some(FaultForm::Abort { status: status.as_u16(), percent }),
                FaultKind::Delay(delay) => Some(FaultForm::Delay { ms: milliseconds(delay), percent }),
                _ => None,
            }
        });
        Self { latency_ms, faults: faults.collect() }
    }
}

impl PlanForm {
    /// The plan that this describes, in place of `now`. Errors: what cannot be.
    pub(crate) fn plan(&self, now: &FaultConfig) -> Result<FaultConfig, String> {
        const MAX_FAULTS: usize = 8;
        let delay = |ms: f64| {
            let delay = Duration::try_from_secs_f64(ms / 1e3).ok().filter(|delay| *delay <= MAX_DELAY);
            delay.ok_or_else(|| format!("a delay of {ms} ms is not from 0 to {} ms", MAX_DELAY.as_millis()))
        };
        let latency = match self.latency_ms {
            None => now.latency.clone(),
            Some([low, high]) => match (delay(low)?, delay(high)?) {
                (low, high) if low > high => return Err("the lower latency is above the upper".into()),
                (_, Duration::ZERO) => Latency::None,
                (low, high) if low == high => Latency::Fixed(low),
                (low, high) => Latency::Uniform(low, high),
            },
        };
        if self.faults.len() > MAX_FAULTS {
            return Err(format!("a hop takes up to {MAX_FAULTS} faults from here"));
        }
        let fault = |form: &FaultForm| {
            let (FaultForm::Abort { percent, .. } | FaultForm::Delay { percent, .. }) = *form;
            if !(0.0..=100.0).contains(&percent) {
                return Err(format!("a rate of {percent} % is not from 0 to 100"));
            }
            let kind = match *form {
                FaultForm::Abort { status, .. } => {
                    let code = Some(status).filter(|status| (400..=599).contains(status));
                    let code = code.and_then(|status| http::StatusCode::from_u16(status).ok());
                    FaultKind::Abort(code.ok_or_else(|| format!("the status {status} is not from 400 to 599"))?)
                }
                FaultForm::Delay { ms, .. } => FaultKind::Delay(delay(ms)?),
            };
            Ok(Fault { kind, share: percent / 100.0 })
        };
        let mut faults = self.faults.iter().map(fault).collect::<Result<Vec<_>, _>>()?;
        let is_slider = |fault: &&Fault| matches!(fault.kind, FaultKind::Abort(_) | FaultKind::Delay(_));
        faults.extend(now.faults.iter().filter(|fault| !is_slider(fault)).cloned());
        Ok(FaultConfig { latency, faults, breaks: now.breaks.clone() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn form(json: &str) -> Result<FaultConfig, String> {
        serde_json::from_str::<PlanForm>(json).map_err(|error| error.to_string())?.plan(&FaultConfig::default())
    }

    #[test]
    fn a_plan_comes_back_from_the_page_as_it_went_there() {
        let faults: Vec<Fault> =
            ["abort=503@7%", "delay=2s@0.5%", "abort=500@100%", "reset@3%"].map(|fault| fault.parse().unwrap()).to_vec();
        for latency in ["0", "20ms", "5ms..60ms", "p50=20ms,p90=80ms"] {
            let breaks = vec!["new-trace@5%".parse().unwrap()];
            let plan = FaultConfig { latency: latency.parse().unwrap(), faults: faults.clone(), breaks };
            let form = PlanForm::from(&plan);
            let json = serde_json::to_string(&form).unwrap();
            assert!(json.contains(r#"{"abort":{"status":503,"percent":7.0}}"#), "{json}");
            assert_eq!(serde_json::from_str::<PlanForm>(&json).unwrap().plan(&plan), Ok(plan));
        }
    }

    #[test]
    fn what_cannot_be_is_refused_and_nothing_panics() {
        assert!(form(r#"{"latency_ms":[0,60000],"faults":[]}"#).is_ok());
        for bad in [
            r#"{"latency_ms":[5,1],"faults":[]}"#,
            r#"{"latency_ms":[-1,1],"faults":[]}"#,
            r#"{"latency_ms":[0,60001],"faults":[]}"#,
            r#"{"latency_ms":[0,1e300],"faults":[]}"#,
            r#"{"latency_ms":[0,1],"faults":[{"abort":{"status":200,"percent":1}}]}"#,
            r#"{"latency_ms":[0,1],"faults":[{"abort":{"status":503,"percent":101}}]}"#,
            r#"{"latency_ms":[0,1],"faults":[{"delay":{"ms":-1,"percent":1}}]}"#,
            r#"{"latency_ms":[0,1],"faults":[],"more":1}"#,
        ] {
            assert!(form(bad).is_err(), "{bad}");
        }
    }
}
