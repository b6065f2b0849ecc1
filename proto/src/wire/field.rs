//! Texts, times and numbers as single fields, and the checks of fields.

use std::collections::BTreeMap;
use std::time::Duration;

use super::codec::Codec;
use super::{FieldProblem, LARGEST_EXPONENT, LONGEST_WORDS, MOST_SITES, Result, WireError};
use crate::SiteId;
use crate::message::Exponents;

/// Text of at most so many bytes.
pub(super) struct AtMost(pub(super) usize);

impl Codec<String, String> for AtMost {
    fn write(&self, value: &String) -> String {
        value.clone()
    }

    fn read(&self, field: &str, wire: String) -> Result<String> {
        length(field, wire.len(), self.0).map(|()| wire)
    }
}

/// Text of at most so many bytes. What is longer is cut before it is sent, so that the other side always takes it.
pub(super) struct Clipped(pub(super) usize);

impl Codec<String, String> for Clipped {
    fn write(&self, value: &String) -> String {
        value[..value.floor_char_boundary(self.0)].to_owned()
    }

    fn read(&self, field: &str, wire: String) -> Result<String> {
        AtMost(self.0).read(field, wire)
    }
}

/// A message for people.
pub(super) const WORDS: Clipped = Clipped(LONGEST_WORDS);

/// A time in nanoseconds. More than 584 years become the longest time that can be represented.
pub(super) struct Nanos;

impl Codec<Duration, u64> for Nanos {
    fn write(&self, value: &Duration) -> u64 {
        u64::try_from(value.as_nanos()).unwrap_or(u64::MAX)
    }

    fn read(&self, _: &str, wire: u64) -> Result<Duration> {
        Ok(Duration::from_nanos(wire))
    }
}

/// A time in milliseconds.
pub(super) struct Millis;

impl Codec<Duration, u64> for Millis {
    fn write(&self, value: &Duration) -> u64 {
        u64::try_from(value.as_millis()).unwrap_or(u64::MAX)
    }

    fn read(&self, _: &str, wire: u64) -> Result<Duration> {
        Ok(Duration::from_millis(wire))
    }
}

/// A count of things in memory.
pub(super) struct Size;

impl Codec<usize, u64> for Size {
    fn write(&self, value: &usize) -> u64 {
        *value as u64
    }

    fn read(&self, field: &str, wire: u64) -> Result<usize> {
        usize::try_from(wire).map_err(|_| out_of_range(field, wire, "a size in memory"))
    }
}

/// An exponent of a Gram.
pub(super) struct Exponent;

impl Codec<i32, i32> for Exponent {
    fn write(&self, value: &i32) -> i32 {
        *value
    }

    fn read(&self, field: &str, wire: i32) -> Result<i32> {
        let wanted = -LARGEST_EXPONENT..=LARGEST_EXPONENT;
        if wanted.contains(&wire) {
            Ok(wire)
        } else {
            Err(out_of_range(field, wire, &format!("in {wanted:?}")))
        }
    }
}

/// Exponents by site.
pub(super) struct BySite;

impl Codec<Exponents, BTreeMap<u32, i32>> for BySite {
    fn write(&self, value: &Exponents) -> BTreeMap<u32, i32> {
        value.iter().map(|(site, exponent)| (site.0, *exponent)).collect()
    }

    fn read(&self, field: &str, wire: BTreeMap<u32, i32>) -> Result<Exponents> {
        count(field, wire.len(), MOST_SITES)?;
        let entry = |(site, exponent)| {
            let exponent = Exponent.read("", exponent).map_err(|e| e.within(&format!("{field}[{site}]")))?;
            Ok((SiteId(site), exponent))
        };
        wire.into_iter().map(entry).collect()
    }
}

pub(super) fn required<T>(field: &str, value: Option<T>) -> Result<T> {
    value.ok_or_else(|| WireError::new(field, FieldProblem::Missing))
}

pub(super) fn count(field: &str, found: usize, most: usize) -> Result<()> {
    if found > most { Err(WireError::new(field, FieldProblem::TooMany { found, most })) } else { Ok(()) }
}

pub(super) fn out_of_range(field: &str, found: impl ToString, wanted: &str) -> WireError {
    WireError::new(field, FieldProblem::Range { found: found.to_string(), wanted: wanted.to_owned() })
}

pub(super) fn length(field: &str, found: usize, most: usize) -> Result<()> {
    if found > most { Err(WireError::new(field, FieldProblem::TooLong { found, most })) } else { Ok(()) }
}

pub(super) fn ordered(field: &str, is_sorted: bool) -> Result<()> {
    if is_sorted { Ok(()) } else { Err(WireError::new(field, FieldProblem::Unordered)) }
}
