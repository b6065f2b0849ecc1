//! Newtype ids: a shard cannot be mistaken for a site.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

/// A package, in the order in which packages are pruned: counted from 0 here and in JSON, from 1 in text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PackageId(pub u32);

impl fmt::Display for PackageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (u64::from(self.0) + 1).fmt(f)
    }
}

id!(/// A shard of calibration prompts, counted from 0.
    ShardId(u32));
id!(/// A site of a model: its index in [`crate::Inventory::sites`].
    SiteId(u32));
id!(/// A linear of a model: its index in [`crate::Inventory::linears`].
    LinearId(u32));
id!(/// A token stream of a model: its index in [`crate::Inventory::streams`].
    StreamId(u32));
id!(/// A structure of a model: its index in [`crate::Inventory::structures`].
    StructureId(u32));
/// A worker, numbered by the coordinator; never used twice in a job. The upper half counts the coordinator's earlier starts, the lower half
/// the workers of its start. In text the first start's workers are `1`, `2`, and so on, those of its second `2.1`, `2.2`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct WorkerId(pub u64);

impl fmt::Display for WorkerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        by_start(self.0, f)
    }
}

/// Grows each time the set of workers in a collective changes. It is numbered as a [`WorkerId`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(pub u64);

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        by_start(self.0, f)
    }
}

/// A number whose upper half counts the coordinator's earlier starts.
fn by_start(number: u64, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let (earlier, number) = (number >> 32, number & u64::from(u32::MAX));
    if earlier == 0 { fmt::Display::fmt(&number, f) } else { f.pad(&format!("{}.{number}", earlier + 1)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_count_packages_from_1_and_workers_and_groups_by_the_coordinators_starts() {
        assert_eq!([PackageId(0), PackageId(u32::MAX)].map(|id| id.to_string()), ["1", "4294967296"]);
        let workers = [WorkerId(3), WorkerId((1 << 32) + 2)].map(|id| id.to_string());
        assert_eq!(workers, ["3", "2.2"]);
        assert_eq!([Epoch(3), Epoch((1 << 32) + 2)].map(|id| id.to_string()), ["3", "2.2"]);
    }
}
