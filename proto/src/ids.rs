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
id!(/// A worker, numbered by the coordinator; never used twice in a job.
    WorkerId(u64));
id!(/// Grows each time the set of workers in a collective changes.
    Epoch(u64));
