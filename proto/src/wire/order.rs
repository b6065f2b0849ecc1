//! Parts and orders.

use super::field::{count, each, inner, required};
use super::{MOST_SITES, Problem, Result, WireError, v1};
use crate::message::{Order, Part, PartId, Slice, Tally};
use crate::{Epoch, LinearId, PackageId, ShardId, SiteId};

impl From<PartId> for v1::PartId {
    fn from(part: PartId) -> Self {
        Self { package: part.package.0, site: part.site.0, index: part.index }
    }
}

impl TryFrom<v1::PartId> for PartId {
    type Error = WireError;

    fn try_from(part: v1::PartId) -> Result<Self> {
        Ok(Self { package: PackageId(part.package), site: SiteId(part.site), index: part.index })
    }
}

impl From<&Part> for v1::Part {
    fn from(part: &Part) -> Self {
        let slice =
            |s: &Slice| v1::Slice { linear: s.linear.0, start: s.rows.start as u64, end: s.rows.end as u64 };
        Self {
            id: Some(part.id.into()),
            sites: part.sites.iter().map(|site| site.0).collect(),
            slices: part.slices.iter().map(slice).collect(),
            cost: part.cost,
        }
    }
}

impl TryFrom<v1::Part> for Part {
    type Error = WireError;

    fn try_from(part: v1::Part) -> Result<Self> {
        count("sites", part.sites.len(), MOST_SITES)?;
        Ok(Self {
            id: inner("id", part.id)?,
            sites: part.sites.into_iter().map(SiteId).collect(),
            slices: each("slices", part.slices, MOST_SITES)?,
            cost: part.cost,
        })
    }
}

impl TryFrom<v1::Slice> for Slice {
    type Error = WireError;

    fn try_from(slice: v1::Slice) -> Result<Self> {
        let v1::Slice { linear, start, end } = slice;
        let most = u64::from(u32::MAX);
        if start >= end || end > most {
            let wanted = format!("above start {start}, and at most {most}");
            return Err(WireError::new("end", Problem::Range { found: end.to_string(), wanted }));
        }
        Ok(Self { linear: LinearId(linear), rows: start as usize..end as usize })
    }
}

impl From<&Order> for v1::Order {
    fn from(order: &Order) -> Self {
        use v1::order::{Calibrate, Nothing, Order as O, Solve};
        Self {
            order: Some(match *order {
                Order::Encode => O::Encode(Nothing {}),
                Order::Abort { epoch } => O::AbortEpoch(epoch.0),
                Order::Apply { packages } => O::ApplyPackages(packages),
                Order::Discard { tally } => O::DiscardTally(tally.0),
                Order::Pilot => O::Pilot(Nothing {}),
                Order::Calibrate { tally, shard } => {
                    O::Calibrate(Calibrate { tally: tally.0, shard: shard.0 })
                }
                Order::Form { epoch } => O::FormEpoch(epoch.0),
                Order::Reduce { epoch } => O::ReduceEpoch(epoch.0),
                Order::Solve { epoch, part } => O::Solve(Solve { epoch: epoch.0, part: Some(part.into()) }),
                Order::Export => O::Export(Nothing {}),
            }),
        }
    }
}

impl TryFrom<v1::Order> for Order {
    type Error = WireError;

    fn try_from(order: v1::Order) -> Result<Self> {
        use v1::order::Order as O;
        Ok(match required("order", order.order)? {
            O::Encode(_) => Self::Encode,
            O::AbortEpoch(epoch) => Self::Abort { epoch: Epoch(epoch) },
            O::ApplyPackages(packages) => Self::Apply { packages },
            O::DiscardTally(tally) => Self::Discard { tally: Tally(tally) },
            O::Pilot(_) => Self::Pilot,
            O::Calibrate(c) => Self::Calibrate { tally: Tally(c.tally), shard: ShardId(c.shard) },
            O::FormEpoch(epoch) => Self::Form { epoch: Epoch(epoch) },
            O::ReduceEpoch(epoch) => Self::Reduce { epoch: Epoch(epoch) },
            O::Solve(s) => Self::Solve { epoch: Epoch(s.epoch), part: inner("solve.part", s.part)? },
            O::Export(_) => Self::Export,
        })
    }
}
