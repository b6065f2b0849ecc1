//! Commands: orders with what is needed to follow them.

use super::codec::{Ascending, Codec, Keyed, ListOf, Nested, Required, Same, Shared};
use super::field::{AtMost, BySite};
use super::runs::Runs;
use super::{FieldProblem, LONGEST_RECEIPT, MOST_SITES, MOST_WORKERS, Result, WireError, v1};
use crate::WorkerId;
use crate::message::{Command, Group, Opening, PartId, Receipt, Reduction, SavedSums};

one_of! {
    Command = v1::command::Command as command of v1::Command {
        Encode { is_stored } = Encode: v1::command::Encode { is_stored },
        Abort { epoch } = AbortEpoch(epoch),
        Apply { packages } = ApplyPackages(packages),
        Discard { tally } = DiscardTally(tally),
        Pilot { shard } = PilotShard(shard),
        Calibrate { tally, shard, opening } =
            Calibrate: v1::command::Calibrate { tally, shard, opening: Required(Shared(Nested)) },
        Restore { tally, saved, opening } = Restore: v1::command::Restore {
            tally,
            saved: Required(Shared(Nested)),
            opening: Required(Shared(Nested))
        },
        Form { tally, holds: holds_runs, group } =
            Form: v1::command::Form { tally, holds_runs: Shared(Runs), group: Required(Shared(Nested)) },
        Reduce { epoch } = ReduceEpoch(epoch),
        Solve { epoch, part } = Solve: v1::command::Solve { epoch, part: Required(Shared(Nested)) },
        Export {} = Export: v1::command::Export {},
    }
}

message! { Opening = v1::Opening { package, exponents: BySite } }

message! {
    Group = v1::Group {
        epoch,
        package,
        members: Ascending(Same, MOST_WORKERS),
        reductions: ListOf(Nested, MOST_SITES),
        owners: Keyed(MOST_SITES),
    }
}

message! { Reduction = v1::Reduction { site, roots: ListOf(Same, MOST_WORKERS) } }

impl From<(&PartId, &WorkerId)> for v1::Owner {
    fn from((part, worker): (&PartId, &WorkerId)) -> Self {
        Self { part: Some(part.into()), worker: worker.0 }
    }
}

impl TryFrom<v1::Owner> for (PartId, WorkerId) {
    type Error = WireError;

    fn try_from(owner: v1::Owner) -> Result<Self> {
        Ok((Required(Nested).read("part", owner.part)?, WorkerId(owner.worker)))
    }
}

impl From<&SavedSums> for v1::SavedSums {
    fn from(saved: &SavedSums) -> Self {
        Self { shards_runs: Runs.write(&saved.shards), receipt: saved.receipt.0.to_string() }
    }
}

impl TryFrom<v1::SavedSums> for SavedSums {
    type Error = WireError;

    fn try_from(saved: v1::SavedSums) -> Result<Self> {
        let shards = Runs.read("shards_runs", saved.shards_runs)?;
        if shards.is_empty() {
            return Err(WireError::new("shards_runs", FieldProblem::Missing));
        }
        let receipt = Receipt(AtMost(LONGEST_RECEIPT).read("receipt", saved.receipt)?.into());
        Ok(Self { shards, receipt })
    }
}
