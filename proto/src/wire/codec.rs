//! How the value of a field is written, and read back with its checks.
//!
//! The lists of [`message!`](super::pairs) and its like name a codec for each field. Most are built of others: the field of
//! `ListOf(Nested, MOST_SITES)` holds at most so many messages.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::field::{count, ordered, required};
use super::{Result, WireError};
use crate::message::Tally;
use crate::{Epoch, LinearId, PackageId, ShardId, SiteId, WorkerId};

/// Writes a `T` as a field of type `W`, and reads it back.
pub(super) trait Codec<T, W> {
    fn write(&self, value: &T) -> W;

    /// An error names `field`; codecs of entries get an empty name.
    fn read(&self, field: &str, wire: W) -> Result<T>;
}

/// A value that needs no check. The codec of a field that names none.
pub(super) struct Same;

/// A number or a yes or no, which stays what it is, or an id, which becomes its number.
pub(super) trait Scalar: Copy {
    type Wire;
    fn into_wire(self) -> Self::Wire;
    fn from_wire(wire: Self::Wire) -> Self;
}

macro_rules! scalars {
    ($($number:ident),*; $($id:ident($inner:ident)),*) => {
        $(impl Scalar for $number {
            type Wire = Self;
            fn into_wire(self) -> Self {
                self
            }
            fn from_wire(wire: Self) -> Self {
                wire
            }
        })*
        $(impl Scalar for $id {
            type Wire = $inner;
            fn into_wire(self) -> $inner {
                self.0
            }
            fn from_wire(wire: $inner) -> Self {
                Self(wire)
            }
        })*
    };
}

scalars! {
    bool, u32, u64, f64;
    Epoch(u64), LinearId(u32), PackageId(u32), ShardId(u32), SiteId(u32), Tally(u64), WorkerId(u64)
}

impl<S: Scalar> Scalar for Option<S> {
    type Wire = Option<S::Wire>;

    fn into_wire(self) -> Option<S::Wire> {
        self.map(S::into_wire)
    }

    fn from_wire(wire: Option<S::Wire>) -> Self {
        wire.map(S::from_wire)
    }
}

impl<S: Scalar> Codec<S, S::Wire> for Same {
    fn write(&self, value: &S) -> S::Wire {
        value.into_wire()
    }

    fn read(&self, _: &str, wire: S::Wire) -> Result<S> {
        Ok(S::from_wire(wire))
    }
}

/// A message, by its own list.
pub(super) struct Nested;

impl<T: TryFrom<W, Error = WireError>, W: for<'a> From<&'a T>> Codec<T, W> for Nested {
    fn write(&self, value: &T) -> W {
        value.into()
    }

    fn read(&self, field: &str, wire: W) -> Result<T> {
        T::try_from(wire).map_err(|e| e.within(field))
    }
}

/// One of several. As everywhere in Protobuf its field is not part of a path.
pub(super) struct OneOf;

impl<T: TryFrom<W, Error = WireError>, W: for<'a> From<&'a T>> Codec<T, Option<W>> for OneOf {
    fn write(&self, value: &T) -> Option<W> {
        Some(value.into())
    }

    fn read(&self, field: &str, wire: Option<W>) -> Result<T> {
        T::try_from(required(field, wire)?)
    }
}

/// A variant of an enumeration that [`variants!`](super::pairs) lists.
pub(super) struct Variant;

/// The numbers of an enumeration's variants.
pub(super) trait Numbered: Copy {
    fn number(self) -> i32;
    /// None of a number that is unspecified or belongs to a later release.
    fn numbered(number: i32) -> Option<Self>;
}

impl<T: Numbered> Codec<T, i32> for Variant {
    fn write(&self, value: &T) -> i32 {
        value.number()
    }

    fn read(&self, field: &str, wire: i32) -> Result<T> {
        required(field, T::numbered(wire))
    }
}

/// A value that must be there.
pub(super) struct Required<C>(pub(super) C);

impl<C: Codec<T, W>, T, W> Codec<T, Option<W>> for Required<C> {
    fn write(&self, value: &T) -> Option<W> {
        Some(self.0.write(value))
    }

    fn read(&self, field: &str, wire: Option<W>) -> Result<T> {
        self.0.read(field, required(field, wire)?)
    }
}

/// A value that may be absent.
pub(super) struct Maybe<C>(pub(super) C);

impl<C: Codec<T, W>, T, W> Codec<Option<T>, Option<W>> for Maybe<C> {
    fn write(&self, value: &Option<T>) -> Option<W> {
        value.as_ref().map(|value| self.0.write(value))
    }

    fn read(&self, field: &str, wire: Option<W>) -> Result<Option<T>> {
        wire.map(|wire| self.0.read(field, wire)).transpose()
    }
}

/// A value that is the default where it is absent.
pub(super) struct OrDefault<C>(pub(super) C);

impl<C: Codec<T, W>, T: Default, W> Codec<T, Option<W>> for OrDefault<C> {
    fn write(&self, value: &T) -> Option<W> {
        Some(self.0.write(value))
    }

    fn read(&self, field: &str, wire: Option<W>) -> Result<T> {
        wire.map_or_else(|| Ok(T::default()), |wire| self.0.read(field, wire))
    }
}

/// A value that is absent where it is the default.
pub(super) struct UnlessDefault<C>(pub(super) C);

impl<C: Codec<T, W>, T: Default + PartialEq, W> Codec<T, Option<W>> for UnlessDefault<C> {
    fn write(&self, value: &T) -> Option<W> {
        (*value != T::default()).then(|| self.0.write(value))
    }

    fn read(&self, field: &str, wire: Option<W>) -> Result<T> {
        wire.map_or_else(|| Ok(T::default()), |wire| self.0.read(field, wire))
    }
}

/// A value in a [`Box`].
pub(super) struct Boxed<C>(pub(super) C);

impl<C: Codec<T, W>, T, W> Codec<Box<T>, W> for Boxed<C> {
    fn write(&self, value: &Box<T>) -> W {
        self.0.write(value)
    }

    fn read(&self, field: &str, wire: W) -> Result<Box<T>> {
        self.0.read(field, wire).map(Box::new)
    }
}

/// A value in an [`Arc`].
pub(super) struct Shared<C>(pub(super) C);

impl<C: Codec<T, W>, T, W> Codec<Arc<T>, W> for Shared<C> {
    fn write(&self, value: &Arc<T>) -> W {
        self.0.write(value)
    }

    fn read(&self, field: &str, wire: W) -> Result<Arc<T>> {
        self.0.read(field, wire).map(Arc::new)
    }
}

/// A list of at most so many entries; an error names the entry.
pub(super) struct ListOf<C>(pub(super) C, pub(super) usize);

impl<C: Codec<T, W>, T, W> Codec<Vec<T>, Vec<W>> for ListOf<C> {
    fn write(&self, value: &Vec<T>) -> Vec<W> {
        value.iter().map(|entry| self.0.write(entry)).collect()
    }

    fn read(&self, field: &str, wire: Vec<W>) -> Result<Vec<T>> {
        entries(field, wire, self.1, |entry| self.0.read("", entry))
    }
}

/// Like [`ListOf`], of entries that each appear once, in order.
pub(super) struct Ascending<C>(pub(super) C, pub(super) usize);

impl<C: Codec<T, W>, T: Ord, W> Codec<Vec<T>, Vec<W>> for Ascending<C> {
    fn write(&self, value: &Vec<T>) -> Vec<W> {
        value.iter().map(|entry| self.0.write(entry)).collect()
    }

    fn read(&self, field: &str, wire: Vec<W>) -> Result<Vec<T>> {
        let entries = entries(field, wire, self.1, |entry| self.0.read("", entry))?;
        ordered(field, entries.is_sorted_by(|a, b| a < b)).map(|()| entries)
    }
}

impl<C: Codec<T, W>, T: Ord, W> Codec<BTreeSet<T>, Vec<W>> for Ascending<C> {
    fn write(&self, value: &BTreeSet<T>) -> Vec<W> {
        value.iter().map(|entry| self.0.write(entry)).collect()
    }

    fn read(&self, field: &str, wire: Vec<W>) -> Result<BTreeSet<T>> {
        let entries: Vec<T> = self.read(field, wire)?;
        Ok(entries.into_iter().collect())
    }
}

/// A map as a list of at most so many messages, of which each holds a key and its value, in the order of the keys.
pub(super) struct Keyed(pub(super) usize);

impl<K: Ord, V, W> Codec<BTreeMap<K, V>, Vec<W>> for Keyed
where
    W: for<'a> From<(&'a K, &'a V)>,
    (K, V): TryFrom<W, Error = WireError>,
{
    fn write(&self, value: &BTreeMap<K, V>) -> Vec<W> {
        value.iter().map(W::from).collect()
    }

    fn read(&self, field: &str, wire: Vec<W>) -> Result<BTreeMap<K, V>> {
        let entries = entries(field, wire, self.0, <(K, V)>::try_from)?;
        ordered(field, entries.is_sorted_by(|(a, _), (b, _)| a < b))?;
        Ok(entries.into_iter().collect())
    }
}

fn entries<T, W>(field: &str, wire: Vec<W>, most: usize, read: impl Fn(W) -> Result<T>) -> Result<Vec<T>> {
    count(field, wire.len(), most)?;
    let entry = |(i, entry)| read(entry).map_err(|e| e.within(&format!("{field}[{i}]")));
    wire.into_iter().enumerate().map(entry).collect()
}
