//! The types of values that OpenTelemetry's specification names.

use std::time::Duration;

use percent_encoding::percent_decode_str;

use crate::net::hosts::parse_url;

/// # Errors
///
/// What is accepted.
pub(super) fn boolean(text: &str) -> Result<bool, String> {
    match text.to_ascii_lowercase().as_str() {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err("accepted: true, false".to_owned()),
    }
}

/// # Errors
///
/// What is accepted.
pub(super) fn url(text: &str) -> Result<String, String> {
    parse_url(text).map_err(|error| format!("{error}; accepted: http://host:port/path or https://…"))?;
    Ok(text.trim().to_owned())
}

fn milliseconds(text: &str) -> Result<u32, String> {
    text.parse().map_err(|_| format!("accepted: a number of milliseconds from 0 to {}", u32::MAX))
}

/// The time between exports. Without any, a loop would have nothing to wait for: 0 is as 1.
///
/// # Errors
///
/// What is accepted.
pub(super) fn delay(text: &str) -> Result<Duration, String> {
    Ok(Duration::from_millis(milliseconds(text)?.max(1).into()))
}

/// 0 is no limit, which is the longest one (OpenTelemetry, "Common configuration").
///
/// # Errors
///
/// What is accepted.
pub(super) fn timeout(text: &str) -> Result<Duration, String> {
    let ms = milliseconds(text)?;
    Ok(Duration::from_millis(if ms == 0 { u32::MAX } else { ms }.into()))
}

/// [`pairs`], keys percent-encoded, too. Whatever is malformed discards the whole (OpenTelemetry, "Resource SDK").
///
/// # Errors
///
/// What is accepted, or what is malformed.
pub(super) fn attributes(text: &str) -> Result<Vec<(String, String)>, String> {
    let escapes = text.split('%').skip(1);
    if !escapes.into_iter().all(|rest| rest.len() >= 2 && rest.bytes().take(2).all(|digit| digit.is_ascii_hexdigit())) {
        return Err("a % is not the begin of a percent-encoded byte".to_owned());
    }
    let decoded = pairs(text)?.into_iter().map(|(key, value)| {
        let key = percent_decode_str(&key).decode_utf8().map_err(|_| "a key is not percent-encoded UTF-8")?.into_owned();
        if key.is_empty() { Err("accepted: key=value,key=value; a key is empty".to_owned()) } else { Ok((key, value)) }
    });
    decoded.collect()
}

/// `key=value,key=value`, values percent-encoded (W3C Baggage's octet encoding).
///
/// # Errors
///
/// What is accepted; the text is not repeated, because it may hold secrets.
pub(crate) fn pairs(text: &str) -> Result<Vec<(String, String)>, String> {
    let pairs = text.split(',').map(str::trim).filter(|pair| !pair.is_empty()).map(|pair| {
        let (key, value) = pair.split_once('=').ok_or("accepted: key=value,key=value")?;
        let value = percent_decode_str(value.trim()).decode_utf8().map_err(|_| "a value is not percent-encoded UTF-8")?;
        Ok((key.trim().to_owned(), value.into_owned()))
    });
    pairs.collect()
}
