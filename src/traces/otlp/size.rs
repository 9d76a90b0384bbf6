//! What the messages of a protobuf body take in memory, before they are decoded. An empty message takes two bytes in the body,
//! and a hundred times as many in memory.

use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::trace::v1::{Span, span};

use crate::traces::span::DecodeError;

/// Checks that a request takes at most `room` bytes.
pub(super) fn fits(body: &[u8], mut room: usize) -> Result<(), DecodeError> {
    take(body, &REQUEST, &mut room, 0)
}

/// A message, as far as it holds others: their field numbers, and what each takes in memory.
struct Shape(&'static [(usize, usize, &'static Shape)]);

static REQUEST: Shape = Shape(&[(1, 120, &RESOURCE_SPANS)]);
static RESOURCE_SPANS: Shape = Shape(&[(1, 80, &HAS_ATTRIBUTES_1), (2, 150, &SCOPE_SPANS)]);
static HAS_ATTRIBUTES_1: Shape = Shape(&[(1, ATTRIBUTE, &KEY_VALUE), (3, 100, &LEAF)]);
static SCOPE_SPANS: Shape = Shape(&[(1, 120, &SCOPE), (2, size_of::<Span>(), &SPAN)]);
static SCOPE: Shape = Shape(&[(3, ATTRIBUTE, &KEY_VALUE)]);
static SPAN: Shape =
    Shape(&[(9, ATTRIBUTE, &KEY_VALUE), (11, size_of::<span::Event>(), &EVENT), (13, size_of::<span::Link>(), &LINK)]);
static EVENT: Shape = Shape(&[(3, ATTRIBUTE, &KEY_VALUE)]);
static LINK: Shape = Shape(&[(4, ATTRIBUTE, &KEY_VALUE)]);
static KEY_VALUE: Shape = Shape(&[(2, 0, &ANY_VALUE)]);
static ANY_VALUE: Shape = Shape(&[(5, 0, &ARRAY), (6, 0, &KEY_VALUES)]);
static ARRAY: Shape = Shape(&[(1, size_of::<AnyValue>(), &ANY_VALUE)]);
static KEY_VALUES: Shape = Shape(&[(1, ATTRIBUTE, &KEY_VALUE)]);
static LEAF: Shape = Shape(&[]);
/// A list grows by doubling.
const ATTRIBUTE: usize = 2 * size_of::<KeyValue>();

/// Goes over the messages of a body, and takes what they need in memory from `room`.
fn take(mut body: &[u8], shape: &Shape, room: &mut usize, depth: u32) -> Result<(), DecodeError> {
    let cut = || DecodeError::Invalid("it ends in the middle of a message".into());
    let number = |body: &mut &[u8]| prost::decode_length_delimiter(body).map_err(|_| cut());
    while !body.is_empty() {
        let key = number(&mut body)?;
        let length = match key & 7 {
            0 => number(&mut body).map(|_| 0)?,
            1 => 8,
            2 => number(&mut body)?,
            5 => 4,
            _ => return Err(DecodeError::Invalid(format!("there is no wire type {} in OTLP", key & 7))),
        };
        let (value, rest) = body.split_at_checked(length).ok_or_else(cut)?;
        body = rest;
        if let Some((_, size, inner)) = shape.0.iter().find(|(field, ..)| *field == key >> 3 && key & 7 == 2) {
            *room = room.checked_sub(*size).ok_or(DecodeError::TooLarge)?;
            // The decoder goes no deeper.
            if depth < 100 {
                take(value, inner, room, depth + 1)?;
            }
        }
    }
    Ok(())
}
