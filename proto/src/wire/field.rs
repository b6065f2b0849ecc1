//! Checks of single fields.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::{LARGEST_EXPONENT, LONGEST_WORDS, MOST_SITES, Problem, Result, Side, WireError};
use crate::SiteId;
use crate::message::Exponents;
use crate::session::PROTOCOL;

/// Reads a field that holds a message; an error in it names this field too.
pub(super) fn inner<M, T: TryFrom<M, Error = WireError>>(field: &str, message: Option<M>) -> Result<T> {
    let message = required(field, message)?;
    T::try_from(message).map_err(|e| e.within(field))
}

/// Reads a field that may be absent.
pub(super) fn optional<M, T: TryFrom<M, Error = WireError>>(
    field: &str,
    message: Option<M>,
) -> Result<Option<T>> {
    message.map(|m| T::try_from(m).map_err(|e| e.within(field))).transpose()
}

/// Reads a list of messages; an error names the entry.
pub(super) fn each<M, T: TryFrom<M, Error = WireError>>(
    field: &str,
    messages: Vec<M>,
    most: usize,
) -> Result<Vec<T>> {
    count(field, messages.len(), most)?;
    let entry = |(i, m)| T::try_from(m).map_err(|e: WireError| e.within(&format!("{field}[{i}]")));
    messages.into_iter().enumerate().map(entry).collect()
}

pub(super) fn required<T>(field: &str, value: Option<T>) -> Result<T> {
    value.ok_or_else(|| WireError::new(field, Problem::Missing))
}

pub(super) fn count(field: &str, found: usize, most: usize) -> Result<()> {
    if found > most { Err(WireError::new(field, Problem::TooMany { found, most })) } else { Ok(()) }
}

pub(super) fn length(field: &str, found: usize, most: usize) -> Result<()> {
    if found > most { Err(WireError::new(field, Problem::TooLong { found, most })) } else { Ok(()) }
}

/// Text of at most `most` bytes.
pub(super) fn text(field: &str, text: String, most: usize) -> Result<String> {
    length(field, text.len(), most).map(|()| text)
}

/// Words for people, as [`clipped`] writes them.
pub(super) fn words(field: &str, words: String) -> Result<String> {
    text(field, words, LONGEST_WORDS)
}

/// Words for people, cut at what the other side takes.
pub(super) fn clipped(words: &str) -> String {
    words[..words.floor_char_boundary(LONGEST_WORDS)].to_owned()
}

/// Entries that each stand once, in order.
pub(super) fn ascending<T: Ord>(
    field: &str,
    entries: impl ExactSizeIterator<Item = T>,
    most: usize,
) -> Result<BTreeSet<T>> {
    count(field, entries.len(), most)?;
    let entries: Vec<T> = entries.collect();
    if entries.is_sorted_by(|a, b| a < b) {
        Ok(entries.into_iter().collect())
    } else {
        Err(WireError::new(field, Problem::Unordered))
    }
}

/// Keyed entries, by keys that each stand once, in order.
pub(super) fn keyed<K: Ord, V>(field: &str, entries: Vec<(K, V)>) -> Result<BTreeMap<K, V>> {
    if entries.is_sorted_by(|(a, _), (b, _)| a < b) {
        Ok(entries.into_iter().collect())
    } else {
        Err(WireError::new(field, Problem::Unordered))
    }
}

pub(super) fn size(field: &str, found: u64) -> Result<usize> {
    let range = |_| Problem::Range { found: found.to_string(), wanted: "a size in memory".to_owned() };
    usize::try_from(found).map_err(|e| WireError::new(field, range(e)))
}

pub(super) fn exponent(field: &str, found: i32) -> Result<i32> {
    if (-LARGEST_EXPONENT..=LARGEST_EXPONENT).contains(&found) {
        return Ok(found);
    }
    let wanted = format!("in -{LARGEST_EXPONENT}..={LARGEST_EXPONENT}");
    Err(WireError::new(field, Problem::Range { found: found.to_string(), wanted }))
}

pub(super) fn exponents(field: &str, found: BTreeMap<u32, i32>) -> Result<Exponents> {
    count(field, found.len(), MOST_SITES)?;
    let entry = |(site, e)| Ok((SiteId(site), exponent(&format!("{field}[{site}]"), e)?));
    found.into_iter().map(entry).collect()
}

pub(super) fn exponents_out(exponents: &Exponents) -> BTreeMap<u32, i32> {
    exponents.iter().map(|(site, e)| (site.0, *e)).collect()
}

/// A duration of more than 584 years becomes the longest that can be represented.
pub(super) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Refuses another protocol before anything else of a message is looked at.
pub(super) fn protocol(them: Side, theirs: u32) -> Result<()> {
    if theirs == PROTOCOL { Ok(()) } else { Err(WireError::Protocol { them, theirs }) }
}
