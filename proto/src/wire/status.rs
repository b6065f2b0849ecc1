//! Statuses: all that a worker knows of its own work.

use super::codec::{
    Ascending, Codec, Keyed, Maybe, Nested, OneOf, Required, Same, Shared, UnlessDefault, Variant,
};
use super::field::{AtMost, BySite, Exponent, Nanos, WORDS};
use super::runs::Runs;
use super::{LONGEST_RECEIPT, MOST_SHARDS, MOST_SITES, Result, WireError, v1};
use crate::message::{
    Encoding, Exponents, Fault, GroupStage, GroupStatus, PartId, Receipt, Solved, Status, Sums, Trouble,
};
use crate::{Epoch, GpuMemory, Measures, MemoryExcess, PrunedSoFar};

message! {
    Status = v1::Status {
        progress,
        applied,
        sums: Required(Nested),
        group: Maybe(Nested),
        pilot: Maybe(Shared(Pilot)),
        solved: Keyed(MOST_SITES),
        exported,
        trouble: Maybe(Nested),
        in_hand: Ascending(Nested, MOST_SHARDS),
        draining,
        saving,
        preparing,
        encoding: Variant,
        measures: UnlessDefault(Nested);
        renamed pace = pace_nanos: Maybe(Nanos)
    }
}

variants! { Encoding = v1::status::Encoding { Ready, Done; else Unready } }

message! {
    Measures = v1::Measures {
        prompt_steps,
        reduced_bytes,
        gpu_memory: Maybe(Nested),
        opening_excess: Maybe(Nested),
        solving_excess: Maybe(Nested),
        pruned: UnlessDefault(Nested);
        renamed
        forward = forward_nanos: Nanos,
        gram = gram_nanos: Nanos,
        solve = solve_nanos: Nanos,
        peak_memory = peak_memory_bytes,
        planned_memory = planned_memory_bytes,
    }
}

message! {
    PrunedSoFar = v1::measures::Pruned { linears, weights, zeros, raised, measured, error_billionths }
}

message! { GpuMemory = v1::GpuMemory {; renamed used = used_bytes, total = total_bytes } }

message! { MemoryExcess = v1::MemoryExcess {; renamed taken = taken_bytes, planned = planned_bytes } }

message! {
    Sums = v1::Sums { tally, package, spoiled, saved: Maybe(Shared(Nested)); renamed held = held_runs: Runs }
}

message! { Trouble = v1::Trouble { serial, fault: OneOf, order: Required(Nested) } }

one_of! {
    Fault = v1::trouble::Fault {
        Overflow { site, exponent } = Overflow: v1::trouble::Overflow { site, exponent: Exponent },
        Transient(why) = Transient(why: WORDS),
        Environment(why) = Environment(why: WORDS),
        Fatal(why) = Fatal(why: WORDS),
    }
}

variants_or_failure! {
    GroupStage = v1::group_status::Stage as stage { Forming, Formed, Reduced, Aborted; Failed }
}

impl From<&GroupStatus> for v1::GroupStatus {
    fn from(group: &GroupStatus) -> Self {
        let (stage, failure): (v1::group_status::Stage, String) = (&group.stage).into();
        let received = Ascending(Same, MOST_SITES).write(&group.received);
        Self { epoch: group.epoch.0, stage: stage.into(), failure, received }
    }
}

impl TryFrom<v1::GroupStatus> for GroupStatus {
    type Error = WireError;

    fn try_from(group: v1::GroupStatus) -> Result<Self> {
        Ok(Self {
            epoch: Epoch(group.epoch),
            stage: (group.stage(), group.failure).try_into()?,
            received: Ascending(Same, MOST_SITES).read("received", group.received)?,
        })
    }
}

impl From<(&PartId, &Solved)> for v1::Solved {
    fn from((part, solved): (&PartId, &Solved)) -> Self {
        Self {
            part: Some(part.into()),
            exponents: BySite.write(&solved.exponents),
            receipt: solved.receipt.0.to_string(),
        }
    }
}

impl TryFrom<v1::Solved> for (PartId, Solved) {
    type Error = WireError;

    fn try_from(solved: v1::Solved) -> Result<Self> {
        let part = Required(Nested).read("part", solved.part)?;
        let exponents = BySite.read("exponents", solved.exponents)?;
        let receipt = Receipt(AtMost(LONGEST_RECEIPT).read("receipt", solved.receipt)?.into());
        Ok((part, Solved { exponents, receipt }))
    }
}

/// A pilot's exponents, in a message because they may be absent.
struct Pilot;

impl Codec<Exponents, v1::Exponents> for Pilot {
    fn write(&self, value: &Exponents) -> v1::Exponents {
        v1::Exponents { exponents: BySite.write(value) }
    }

    fn read(&self, field: &str, wire: v1::Exponents) -> Result<Exponents> {
        BySite.read(field, wire.exponents)
    }
}
