//! Parts and orders.

use super::codec::{ListOf, Nested, Required, Same};
use super::field::out_of_range;
use super::{MOST_SITES, Result, WireError, v1};
use crate::LinearId;
use crate::message::{Order, Part, PartId, Slice};

message! { PartId = v1::PartId { package, site, index } }

message! {
    Part = v1::Part {
        id: Required(Nested),
        sites: ListOf(Same, MOST_SITES),
        slices: ListOf(Nested, MOST_SITES),
        cost,
    }
}

one_of! {
    Order = v1::order::Order as order of v1::Order {
        Encode {} = Encode: v1::order::Nothing {},
        Abort { epoch } = AbortEpoch(epoch),
        Apply { packages } = ApplyPackages(packages),
        Discard { tally } = DiscardTally(tally),
        Pilot {} = Pilot: v1::order::Nothing {},
        Calibrate { tally, shard } = Calibrate: v1::order::Calibrate { tally, shard },
        Restore { tally, first } = Restore: v1::order::Restore { tally, first },
        Form { epoch } = FormEpoch(epoch),
        Reduce { epoch } = ReduceEpoch(epoch),
        Solve { epoch, part } = Solve: v1::order::Solve { epoch, part: Required(Nested) },
        Export {} = Export: v1::order::Nothing {},
    }
}

impl From<&Slice> for v1::Slice {
    fn from(slice: &Slice) -> Self {
        Self { linear: slice.linear.0, start: slice.rows.start as u64, end: slice.rows.end as u64 }
    }
}

impl TryFrom<v1::Slice> for Slice {
    type Error = WireError;

    fn try_from(slice: v1::Slice) -> Result<Self> {
        let v1::Slice { linear, start, end } = slice;
        let most = u64::from(u32::MAX);
        if start >= end || end > most {
            return Err(out_of_range("end", end, &format!("above start {start}, and at most {most}")));
        }
        Ok(Self { linear: LinearId(linear), rows: start as usize..end as usize })
    }
}
