//! `x-fault`: faults for one request, which it carries along to the hops that it names.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use subtle::ConstantTimeEq as _;

use crate::hop::fault::Injection;
use crate::hop::identity::Identity;
use crate::trace_context::{Carried, HeaderSource as _, Propagator};

/// The header, and the one with the token that goes with it.
pub(crate) const X_FAULT: &str = "x-fault";
pub(crate) const X_FAULT_TOKEN: &str = "x-fault-token";

/// How large the header may be, and how many faults it may have.
const MAX_BYTES: usize = 1024;
const MAX_FAULTS: usize = 16;
/// The longest that one request may ask of a hop, in delays and processor time together.
const MAX_TIME: Duration = Duration::from_secs(60);

/// `--request-faults`: whose `x-fault` acts.
#[derive(Clone, Default, PartialEq, Eq)]
pub enum RequestFaults {
    /// Nobody's; the header is not carried.
    #[default]
    Off,
    /// Everybody's.
    On,
    /// That of whoever has this token.
    Token(String),
}

impl fmt::Debug for RequestFaults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl RequestFaults {
    /// As `--request-faults` has it.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::On => "on",
            Self::Token(_) => "token",
        }
    }

    /// What the request asks of this hop; `None` when it asks for nothing, or may not.
    ///
    /// # Errors
    ///
    /// Why nothing of the header acts.
    pub(crate) fn read(
        &self,
        carried: &Carried,
        who: &Identity,
        propagator: &Propagator,
    ) -> Option<Result<Vec<Injection>, String>> {
        if *self == Self::Off || carried.first(X_FAULT).is_none() {
            return None;
        }
        let is_allowed = match self {
            Self::Token(token) => carried.only(X_FAULT_TOKEN).is_some_and(|given| token.as_bytes().ct_eq(given).into()),
            _ => true,
        };
        if !is_allowed {
            return Some(Err(format!("{X_FAULT} needs the right {X_FAULT_TOKEN}")));
        }
        let read = parse(carried.values(X_FAULT));
        let mine = read.map(|all| all.into_iter().filter(|fault| fault.is_for(who)).map(|fault| fault.what).collect());
        Some(mine.and_then(|mine: Vec<_>| check(&mine, propagator).map(|()| mine)))
    }
}

/// What the request may ask of one hop, all in all.
fn check(mine: &[Injection], propagator: &Propagator) -> Result<(), String> {
    let time = mine.iter().filter_map(Injection::time).sum::<Duration>();
    if time > MAX_TIME {
        return Err(format!("{X_FAULT} asks for {time:?} of delay and cpu at this hop; up to {MAX_TIME:?} are accepted"));
    }
    let mut named = mine.iter().filter_map(Injection::header);
    match named.find(|name| !propagator.carries(name)) {
        Some(name) => Err(format!("the header '{name}' is not one that this hop carries")),
        None => Ok(()),
    }
}

/// Reads every value of the header: faults with a semicolon between them.
fn parse<'a>(values: impl Iterator<Item = &'a [u8]>) -> Result<Vec<AddressedFault>, String> {
    let text = values.map(|value| std::str::from_utf8(value).map_err(|_| format!("{X_FAULT} is no text")));
    let text = text.collect::<Result<Vec<_>, _>>()?.join(";");
    if text.len() > MAX_BYTES {
        return Err(format!("{X_FAULT} has {} bytes; up to {MAX_BYTES} are accepted", text.len()));
    }
    let faults: Vec<_> = text.split(';').map(str::trim).filter(|fault| !fault.is_empty()).collect();
    if faults.len() > MAX_FAULTS {
        return Err(format!("{X_FAULT} has {} faults; up to {MAX_FAULTS} are accepted", faults.len()));
    }
    let bounded = |text: &str| {
        let at: AddressedFault = text.parse()?;
        match at.what.time() {
            Some(time) if time > MAX_TIME => {
                Err(format!("'{text}' is longer than {MAX_TIME:?}, the most that one request may ask for"))
            }
            _ => Ok(at),
        }
    };
    faults.into_iter().map(bounded).collect()
}

/// A fault or a break at the hops that it names: `service3:abort=503@50%`.
#[derive(Debug, Clone, PartialEq)]
pub struct AddressedFault {
    /// `None`: every hop.
    name: Option<String>,
    /// A version, or a host's name: one instance.
    instance: Option<String>,
    /// What is done there.
    pub what: Injection,
}

impl AddressedFault {
    /// Whether it names this hop.
    pub(crate) fn is_for(&self, who: &Identity) -> bool {
        self.name.as_ref().is_none_or(|name| *name == who.name)
            && self.instance.as_ref().is_none_or(|instance| *instance == who.version || *instance == who.hostname)
    }

    /// The version or the host, where it names one.
    pub(crate) fn instance(&self) -> Option<&str> {
        self.instance.as_deref()
    }

    /// The name of the hop, where it names one.
    pub(crate) fn hop(&self) -> Option<&str> {
        self.name.as_deref()
    }
}

impl FromStr for AddressedFault {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let form = || format!("'{text}' names no hop; it is written service2:abort=503@10%, service2/v2:… or *:…");
        let (hop, what) = text.split_once(':').map(|(hop, what)| (hop.trim(), what.trim())).ok_or_else(form)?;
        let (name, instance) = hop.split_once('/').map_or((hop, None), |(name, instance)| (name, Some(instance)));
        if name.is_empty() || instance.is_some_and(str::is_empty) {
            return Err(form());
        }
        let name = (name != "*").then(|| name.to_owned());
        Ok(Self { name, instance: instance.map(str::to_owned), what: what.parse()? })
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;
    use crate::hop::identity::Locality;

    fn who() -> Identity {
        let text = |text: &str| text.to_owned();
        Identity {
            name: text("service3"),
            version: text("v2"),
            lane: text("base"),
            hostname: text("pod-1"),
            place: Locality::default(),
        }
    }

    fn read(faults: &RequestFaults, headers: &[(&'static str, &str)]) -> Option<Result<Vec<String>, String>> {
        let names = [X_FAULT, X_FAULT_TOKEN].map(HeaderName::from_static).to_vec();
        let (propagator, mut carried) =
            (Propagator::new(crate::trace_context::Propagators::default(), names, vec![]), Carried::default());
        for (name, value) in headers {
            propagator.carry(&mut carried, &HeaderName::from_static(name), &HeaderValue::from_str(value).unwrap());
        }
        let text = |injection: Injection| match injection {
            Injection::Fault(fault) => fault.to_string(),
            Injection::Break(broken) => format!("break={broken}"),
        };
        faults.read(&carried, &who(), &propagator).map(|read| read.map(|all| all.into_iter().map(text).collect()))
    }

    #[test]
    fn what_names_this_hop_acts_and_nothing_else_does() {
        let all = "service3:abort=503@50%; service2:delay=400ms;service3/v2:reset ; service3/v1:hang;service3/pod-1:break=new-trace;*:cpu=1ms;";
        let mine = ["abort=503@50%", "reset", "break=new-trace", "cpu=1ms"].map(str::to_owned).to_vec();
        assert_eq!(read(&RequestFaults::On, &[(X_FAULT, all)]), Some(Ok(mine)));
        assert_eq!(
            read(&RequestFaults::On, &[(X_FAULT, " service3 : abort=503 ; * : close ")]).unwrap().unwrap(),
            ["abort=503", "close"]
        );
        let two = [(X_FAULT, "service3:reset"), (X_FAULT, "*:close")];
        assert_eq!(read(&RequestFaults::On, &two).unwrap().unwrap(), ["reset", "close"]);
        // Each hop waits for what it is asked, and breaks what it carries.
        let others = "service3:delay=60s;service2:delay=60s;service2:break=join=x-of-service2";
        assert_eq!(read(&RequestFaults::On, &[(X_FAULT, others)]).unwrap().unwrap(), ["delay=1m"]);
        assert_eq!(read(&RequestFaults::Off, &[(X_FAULT, all)]), None);
        assert_eq!(read(&RequestFaults::On, &[]), None);
    }

    #[test]
    fn a_header_that_cannot_be_read_changes_nothing_and_says_why() {
        let many = "*:reset;".repeat(17);
        let long = format!("*:reset;service9:{}", "x".repeat(1024));
        for (bad, says) in [
            ("*:reset;service3", "names no hop"),
            ("*:reset;:reset", "names no hop"),
            ("*:reset;service3/:reset", "names no hop"),
            ("*:reset;service9:explode", "accepted are abort=503"),
            ("*:reset;*:break=explode", "accepted are stale-parent"),
            ("*:reset;*:delay=61s", "60s"),
            ("*:reset;*:cpu=2m", "60s"),
            ("*:delay=60s;*:delay=15s", "75s of delay and cpu at this hop; up to 60s"),
            ("*:delay=30s@1%;service3:cpu=20s;service3/v2:cpu=11s", "61s of delay and cpu"),
            ("*:reset;service3:break=duplicate=authorization", "'authorization' is not one that this hop carries"),
            (&many, "up to 16"),
            (&long, "up to 1024"),
        ] {
            let error = read(&RequestFaults::On, &[(X_FAULT, bad)]).unwrap().unwrap_err();
            assert!(error.contains(says), "{bad}: {error}");
        }
    }

    #[test]
    fn a_token_is_needed_where_one_is_set() {
        let token = RequestFaults::Token("secret".to_owned());
        assert_eq!(read(&token, &[(X_FAULT, "*:reset"), (X_FAULT_TOKEN, "secret")]).unwrap().unwrap(), ["reset"]);
        for given in [
            &[][..],
            &[(X_FAULT_TOKEN, "")],
            &[(X_FAULT_TOKEN, "secrets")],
            &[(X_FAULT_TOKEN, "secret"), (X_FAULT_TOKEN, "secret")],
        ] {
            let headers = [&[(X_FAULT, "*:reset")], given].concat();
            assert!(read(&token, &headers).unwrap().unwrap_err().contains("right x-fault-token"), "{given:?}");
        }
        assert!(!format!("{token:?}").contains("secret"));
    }
}
