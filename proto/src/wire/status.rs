//! Statuses: all that a worker knows of its own work.

use std::sync::Arc;
use std::time::Duration;

use super::field::{
    ascending, clipped, each, exponent, exponents, exponents_out, inner, keyed, nanos, optional, required,
    text, words,
};
use super::runs::{runs, runs_out};
use super::{LONGEST_RECEIPT, MOST_SHARDS, MOST_SITES, Problem, Result, WireError, v1};
use crate::message::{
    Encoding, Fault, GroupStatus, Order, PartId, Receipt, Solved, Stage, Status, Sums, Tally, Trouble,
};
use crate::{Epoch, GpuMemory, Measures, PackageId, PrunedSoFar, SiteId};

impl From<&Status> for v1::Status {
    fn from(status: &Status) -> Self {
        let solved = |(part, solved): (&PartId, &Solved)| v1::Solved {
            part: Some((*part).into()),
            exponents: exponents_out(&solved.exponents),
            receipt: solved.receipt.0.to_string(),
        };
        Self {
            progress: status.progress,
            applied: status.applied,
            sums: Some((&status.sums).into()),
            pace_nanos: status.pace.map(nanos),
            group: status.group.as_ref().map(Into::into),
            pilot: status.pilot.as_ref().map(|e| v1::Exponents { exponents: exponents_out(e) }),
            solved: status.solved.iter().map(solved).collect(),
            exported: status.exported,
            trouble: status.trouble.as_ref().map(Into::into),
            in_hand: status.in_hand.iter().map(Into::into).collect(),
            draining: status.draining,
            preparing: status.preparing,
            encoding: v1::status::Encoding::from(status.encoding).into(),
            measures: (status.measures != Measures::default()).then(|| status.measures.into()),
        }
    }
}

impl TryFrom<v1::Status> for Status {
    type Error = WireError;

    fn try_from(status: v1::Status) -> Result<Self> {
        let encoding = status.encoding().into();
        let pilot = status.pilot.map(|pilot| exponents("pilot", pilot.exponents).map(Arc::new));
        let solved = each::<_, SolvedEntry>("solved", status.solved, MOST_SITES)?;
        let in_hand = each::<_, Order>("in_hand", status.in_hand, MOST_SHARDS)?;
        Ok(Self {
            progress: status.progress,
            applied: status.applied,
            sums: inner("sums", status.sums)?,
            pace: status.pace_nanos.map(Duration::from_nanos),
            group: optional("group", status.group)?,
            pilot: pilot.transpose()?,
            solved: keyed("solved", solved.into_iter().map(|s| s.0).collect())?,
            exported: status.exported,
            trouble: optional("trouble", status.trouble)?,
            in_hand: ascending("in_hand", in_hand.into_iter(), MOST_SHARDS)?,
            draining: status.draining,
            preparing: status.preparing,
            encoding,
            measures: status.measures.map(Into::into).unwrap_or_default(),
        })
    }
}

impl From<Encoding> for v1::status::Encoding {
    fn from(encoding: Encoding) -> Self {
        match encoding {
            Encoding::Unready => Self::Unspecified,
            Encoding::Ready => Self::Ready,
            Encoding::Done => Self::Done,
        }
    }
}

impl From<v1::status::Encoding> for Encoding {
    fn from(encoding: v1::status::Encoding) -> Self {
        match encoding {
            v1::status::Encoding::Unspecified => Self::Unready,
            v1::status::Encoding::Ready => Self::Ready,
            v1::status::Encoding::Done => Self::Done,
        }
    }
}

impl From<Measures> for v1::Measures {
    fn from(measures: Measures) -> Self {
        let pruned = measures.pruned;
        Self {
            prompt_steps: measures.prompt_steps,
            forward_nanos: nanos(measures.forward),
            gram_nanos: nanos(measures.gram),
            solve_nanos: nanos(measures.solve),
            reduced_bytes: measures.reduced_bytes,
            peak_memory_bytes: measures.peak_memory,
            planned_memory_bytes: measures.planned_memory,
            gpu_memory: measures.gpu_memory.map(Into::into),
            pruned: (pruned != PrunedSoFar::default()).then_some(v1::measures::Pruned {
                linears: pruned.linears,
                weights: pruned.weights,
                zeros: pruned.zeros,
                raised: pruned.raised,
                measured: pruned.measured,
                error_billionths: pruned.error_billionths,
            }),
        }
    }
}

impl From<v1::Measures> for Measures {
    fn from(measures: v1::Measures) -> Self {
        let pruned = measures.pruned.unwrap_or_default();
        Self {
            prompt_steps: measures.prompt_steps,
            forward: Duration::from_nanos(measures.forward_nanos),
            gram: Duration::from_nanos(measures.gram_nanos),
            solve: Duration::from_nanos(measures.solve_nanos),
            reduced_bytes: measures.reduced_bytes,
            peak_memory: measures.peak_memory_bytes,
            planned_memory: measures.planned_memory_bytes,
            gpu_memory: measures.gpu_memory.map(Into::into),
            pruned: PrunedSoFar {
                linears: pruned.linears,
                weights: pruned.weights,
                zeros: pruned.zeros,
                raised: pruned.raised,
                measured: pruned.measured,
                error_billionths: pruned.error_billionths,
            },
        }
    }
}

impl From<GpuMemory> for v1::GpuMemory {
    fn from(memory: GpuMemory) -> Self {
        Self { used_bytes: memory.used, total_bytes: memory.total }
    }
}

impl From<v1::GpuMemory> for GpuMemory {
    fn from(memory: v1::GpuMemory) -> Self {
        Self { used: memory.used_bytes, total: memory.total_bytes }
    }
}

impl From<&Sums> for v1::Sums {
    fn from(sums: &Sums) -> Self {
        Self {
            tally: sums.tally.0,
            package: sums.package.map(|p| p.0),
            held_runs: runs_out(&sums.held),
            spoiled: sums.spoiled,
        }
    }
}

impl TryFrom<v1::Sums> for Sums {
    type Error = WireError;

    fn try_from(sums: v1::Sums) -> Result<Self> {
        Ok(Self {
            tally: Tally(sums.tally),
            package: sums.package.map(PackageId),
            held: runs("held_runs", &sums.held_runs)?,
            spoiled: sums.spoiled,
        })
    }
}

impl From<&GroupStatus> for v1::GroupStatus {
    fn from(group: &GroupStatus) -> Self {
        use v1::group_status::Stage as S;
        let (stage, failure) = match &group.stage {
            Stage::Forming => (S::Forming, String::new()),
            Stage::Formed => (S::Formed, String::new()),
            Stage::Reduced => (S::Reduced, String::new()),
            Stage::Failed(why) => (S::Failed, clipped(why)),
            Stage::Aborted => (S::Aborted, String::new()),
        };
        Self {
            epoch: group.epoch.0,
            stage: stage.into(),
            failure,
            received: group.received.iter().map(|s| s.0).collect(),
        }
    }
}

impl TryFrom<v1::GroupStatus> for GroupStatus {
    type Error = WireError;

    fn try_from(group: v1::GroupStatus) -> Result<Self> {
        use v1::group_status::Stage as S;
        let stage = match group.stage() {
            S::Unspecified => return Err(WireError::new("stage", Problem::Missing)),
            S::Forming => Stage::Forming,
            S::Formed => Stage::Formed,
            S::Reduced => Stage::Reduced,
            S::Failed => Stage::Failed(words("failure", group.failure)?),
            S::Aborted => Stage::Aborted,
        };
        Ok(Self {
            epoch: Epoch(group.epoch),
            stage,
            received: ascending("received", group.received.into_iter().map(SiteId), MOST_SITES)?,
        })
    }
}

/// An entry of [`Status::solved`].
struct SolvedEntry((PartId, Solved));

impl TryFrom<v1::Solved> for SolvedEntry {
    type Error = WireError;

    fn try_from(solved: v1::Solved) -> Result<Self> {
        let part = inner("part", solved.part)?;
        let exponents = exponents("exponents", solved.exponents)?;
        let receipt = Receipt(text("receipt", solved.receipt, LONGEST_RECEIPT)?.into());
        Ok(Self((part, Solved { exponents, receipt })))
    }
}

impl From<&Trouble> for v1::Trouble {
    fn from(trouble: &Trouble) -> Self {
        use v1::trouble::{Fault as F, Overflow};
        let fault = match &trouble.fault {
            Fault::Overflow { site, exponent } => F::Overflow(Overflow { site: site.0, exponent: *exponent }),
            Fault::Transient(error) => F::Transient(clipped(error)),
            Fault::Environment(error) => F::Environment(clipped(error)),
            Fault::Fatal(error) => F::Fatal(clipped(error)),
        };
        Self { serial: trouble.serial, order: Some((&trouble.order).into()), fault: Some(fault) }
    }
}

impl TryFrom<v1::Trouble> for Trouble {
    type Error = WireError;

    fn try_from(trouble: v1::Trouble) -> Result<Self> {
        use v1::trouble::Fault as F;
        let fault = match required("fault", trouble.fault)? {
            F::Overflow(o) => {
                Fault::Overflow { site: SiteId(o.site), exponent: exponent("overflow.exponent", o.exponent)? }
            }
            F::Transient(error) => Fault::Transient(words("transient", error)?),
            F::Environment(error) => Fault::Environment(words("environment", error)?),
            F::Fatal(error) => Fault::Fatal(words("fatal", error)?),
        };
        Ok(Self { serial: trouble.serial, order: inner("order", trouble.order)?, fault })
    }
}
