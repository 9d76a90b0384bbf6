//! `--fan-out` on the command line.

use std::ffi::OsStr;

use clap::builder::{PossibleValue, StringValueParser, TypedValueParser};

use crate::upstream::FanOut;

/// Reads `--fan-out`, and offers shells what has no number in it.
#[derive(Debug, Clone, Copy)]
pub(super) struct FanOutParser;

impl TypedValueParser for FanOutParser {
    type Value = FanOut;

    fn parse_ref(&self, command: &clap::Command, arg: Option<&clap::Arg>, value: &OsStr) -> Result<FanOut, clap::Error> {
        StringValueParser::new().try_map(|text| text.parse::<FanOut>()).parse_ref(command, arg, value)
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        Some(Box::new(["parallel", "sequential"].into_iter().map(PossibleValue::new)))
    }
}
