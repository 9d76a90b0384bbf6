//! Values of Zipkin's JSON as its clients write them: numbers in quotes, null for nothing, senseless times.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::de::{Deserialize, Deserializer, Error, Visitor};

/// A JSON value that is not nested. Nested ones are refused before they are read, so that they cost no memory.
pub(crate) enum Scalar {
    Null,
    Bool(bool),
    Integer(i128),
    Float(f64),
    Text(Box<str>),
}

impl<'de> Deserialize<'de> for Scalar {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::read(deserializer)
    }
}

struct AnyScalar;

impl Visitor<'_> for AnyScalar {
    type Value = Scalar;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string, a number or a boolean")
    }
    fn visit_unit<E>(self) -> Result<Scalar, E> {
        Ok(Scalar::Null)
    }
    fn visit_bool<E>(self, value: bool) -> Result<Scalar, E> {
        Ok(Scalar::Bool(value))
    }
    fn visit_u64<E>(self, value: u64) -> Result<Scalar, E> {
        Ok(Scalar::Integer(value.into()))
    }
    fn visit_i64<E>(self, value: i64) -> Result<Scalar, E> {
        Ok(Scalar::Integer(value.into()))
    }
    fn visit_f64<E>(self, value: f64) -> Result<Scalar, E> {
        Ok(Scalar::Float(value))
    }
    fn visit_str<E>(self, value: &str) -> Result<Scalar, E> {
        Ok(Scalar::Text(value.into()))
    }
}

impl Scalar {
    pub(crate) fn read<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AnyScalar)
    }

    pub(crate) fn id<T, E: Error, F: fmt::Display>(self, parse: impl Fn(&str) -> Result<T, F>) -> Result<T, E> {
        match self {
            Self::Text(text) => parse(&text).map_err(E::custom),
            _ => Err(E::custom("expected a string of hex digits")),
        }
    }

    /// Any scalar as a text; `None` for null.
    fn text(self) -> Option<Box<str>> {
        match self {
            Self::Null => None,
            Self::Text(text) => Some(text),
            Self::Integer(value) => Some(value.to_string().into()),
            Self::Float(value) => Some(value.to_string().into()),
            Self::Bool(value) => Some(value.to_string().into()),
        }
    }

    /// A string that is not empty; `None` for null and the empty string.
    fn name<E: Error>(self) -> Result<Option<Box<str>>, E> {
        match self {
            Self::Null => Ok(None),
            Self::Text(text) => Ok(Some(text).filter(|text| !text.is_empty())),
            _ => Err(E::custom("expected a string")),
        }
    }

    /// A whole number, quoted or not; 0 for null.
    fn integer<E: Error>(self) -> Result<i128, E> {
        let value = match self {
            Self::Null => Some(0),
            Self::Integer(value) => Some(value),
            // JavaScript writes large numbers as 1.7e15. An f64 of that size is exact.
            Self::Float(value) if value.fract() == 0.0 && value.abs() < 9.0e18 => Some(value as i128),
            Self::Text(text) if text.len() <= 20 => text.parse().ok(),
            _ => None,
        };
        value.ok_or_else(|| E::custom("expected a whole number"))
    }
}

/// A name; null and the empty string are none.
pub(crate) fn name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Box<str>>, D::Error> {
    Scalar::read(deserializer)?.name()
}

/// Any scalar as a text.
pub(crate) fn text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Box<str>, D::Error> {
    Scalar::read(deserializer)?.text().ok_or_else(|| D::Error::custom("has no value"))
}

/// Microseconds; zero, a negative number and null all mean unknown, as in Zipkin.
pub(crate) fn micros<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    let value = Scalar::read(deserializer)?.integer()?.max(0);
    let value = u64::try_from(value).map_err(|_| D::Error::custom("more microseconds than fit into 64 bits"))?;
    Ok(Some(value).filter(|value| *value > 0))
}

/// Microseconds that have to be there.
pub(crate) fn some_micros<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    micros(deserializer)?.ok_or_else(|| D::Error::custom("has no value"))
}

/// A port; 0 and null are none.
pub(crate) fn port<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u16>, D::Error> {
    let value = Scalar::read(deserializer)?.integer()?;
    let value = u16::try_from(value).map_err(|_| D::Error::custom(format_args!("{value} is not 0 to 65535")))?;
    Ok(Some(value).filter(|port| *port != 0))
}

/// A whole number, quoted or not; null is 0.
pub(crate) fn integer<'de, T: TryFrom<i128>, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
    let value = Scalar::read(deserializer)?.integer()?;
    T::try_from(value).map_err(|_| D::Error::custom(format_args!("{value} is out of range")))
}

/// A value of an enumeration, as its number or as the name that `named` knows.
pub(crate) fn enumeration<'de, D: Deserializer<'de>>(
    deserializer: D,
    named: impl Fn(&str) -> Option<i32>,
) -> Result<i32, D::Error> {
    let value = Scalar::read(deserializer)?;
    let known = if let Scalar::Text(name) = &value { named(name) } else { None };
    known.map_or_else(|| i32::try_from(value.integer()?).map_err(D::Error::custom), Ok)
}

/// A text; null is the empty one.
pub(crate) fn string<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    Ok(name(deserializer)?.unwrap_or_default().into())
}

/// Bytes in hex; null is none.
pub(crate) fn hex<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
    let text = string(deserializer)?;
    let digits: Option<Vec<u8>> = text.chars().map(|digit| digit.to_digit(16).map(|digit| digit as u8)).collect();
    let digits =
        digits.filter(|digits| digits.len() % 2 == 0).ok_or_else(|| D::Error::custom("expected hex digits, two a byte"))?;
    Ok(digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect())
}

/// An address. One that does not parse counts as absent, as in Zipkin: reporters put host names there.
pub(crate) fn address<'de, A: FromStr, D: Deserializer<'de>>(deserializer: D) -> Result<Option<A>, D::Error> {
    Ok(name(deserializer)?.and_then(|text| text.parse().ok()))
}

/// A flag; null is false.
pub(crate) fn flag<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    match Scalar::read(deserializer)? {
        Scalar::Null => Ok(false),
        Scalar::Bool(value) => Ok(value),
        _ => Err(D::Error::custom("expected true or false")),
    }
}

/// A value whose default stands for null; one that equals its default counts as null.
pub(crate) fn non_default<'de, T, D>(deserializer: D) -> Result<Option<T>, D::Error>
where
    T: Deserialize<'de> + Default + PartialEq,
    D: Deserializer<'de>,
{
    Ok(Option::<T>::deserialize(deserializer)?.filter(|value| *value != T::default()))
}

/// A list; null is the empty one.
pub(crate) fn list<'de, T: Deserialize<'de>, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<T>, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// An object of scalars as texts; null is the empty one. Of a key that comes twice the last value counts.
pub(crate) fn tags<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<Box<str>, Box<str>>, D::Error> {
    #[derive(serde::Deserialize)]
    struct LooseText(#[serde(deserialize_with = "text")] Box<str>);
    let tags: Option<BTreeMap<Box<str>, LooseText>> = Option::deserialize(deserializer)?;
    Ok(tags.into_iter().flatten().map(|(key, value)| (key, value.0)).collect())
}
