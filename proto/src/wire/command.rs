//! Commands: orders with what is needed to follow them.

use std::sync::Arc;

use super::field::{ascending, count, each, exponents, exponents_out, inner, keyed, required};
use super::runs::{runs, runs_out};
use super::{MOST_SITES, MOST_WORKERS, Result, WireError, v1};
use crate::message::{Command, Group, Opening, PartId, Reduction, Tally};
use crate::{Epoch, PackageId, ShardId, SiteId, WorkerId};

impl From<&Command> for v1::Command {
    fn from(command: &Command) -> Self {
        use v1::command::{Calibrate, Command as C, Encode, Export, Form, Solve};
        Self {
            command: Some(match command {
                Command::Abort { epoch } => C::AbortEpoch(epoch.0),
                Command::Apply { packages } => C::ApplyPackages(*packages),
                Command::Discard { tally } => C::DiscardTally(tally.0),
                Command::Pilot { shard } => C::PilotShard(shard.0),
                Command::Calibrate { tally, shard, opening } => C::Calibrate(Calibrate {
                    tally: tally.0,
                    shard: shard.0,
                    opening: Some(opening.as_ref().into()),
                }),
                Command::Form { tally, holds, group } => C::Form(Form {
                    tally: tally.0,
                    holds_runs: runs_out(holds),
                    group: Some(group.as_ref().into()),
                }),
                Command::Reduce { epoch } => C::ReduceEpoch(epoch.0),
                Command::Solve { epoch, part } => {
                    C::Solve(Solve { epoch: epoch.0, part: Some(part.as_ref().into()) })
                }
                Command::Export => C::Export(Export {}),
                Command::Encode => C::Encode(Encode {}),
            }),
        }
    }
}

impl TryFrom<v1::Command> for Command {
    type Error = WireError;

    fn try_from(command: v1::Command) -> Result<Self> {
        use v1::command::Command as C;
        Ok(match required("command", command.command)? {
            C::AbortEpoch(epoch) => Self::Abort { epoch: Epoch(epoch) },
            C::ApplyPackages(packages) => Self::Apply { packages },
            C::DiscardTally(tally) => Self::Discard { tally: Tally(tally) },
            C::PilotShard(shard) => Self::Pilot { shard: ShardId(shard) },
            C::Calibrate(c) => Self::Calibrate {
                tally: Tally(c.tally),
                shard: ShardId(c.shard),
                opening: Arc::new(inner("calibrate.opening", c.opening)?),
            },
            C::Form(f) => Self::Form {
                tally: Tally(f.tally),
                holds: Arc::new(runs("form.holds_runs", &f.holds_runs)?),
                group: Arc::new(inner("form.group", f.group)?),
            },
            C::ReduceEpoch(epoch) => Self::Reduce { epoch: Epoch(epoch) },
            C::Solve(s) => {
                Self::Solve { epoch: Epoch(s.epoch), part: Arc::new(inner("solve.part", s.part)?) }
            }
            C::Export(_) => Self::Export,
            C::Encode(_) => Self::Encode,
        })
    }
}

impl From<&Opening> for v1::Opening {
    fn from(opening: &Opening) -> Self {
        Self { package: opening.package.0, exponents: exponents_out(&opening.exponents) }
    }
}

impl TryFrom<v1::Opening> for Opening {
    type Error = WireError;

    fn try_from(opening: v1::Opening) -> Result<Self> {
        Ok(Self {
            package: PackageId(opening.package),
            exponents: exponents("exponents", opening.exponents)?,
        })
    }
}

impl From<&Group> for v1::Group {
    fn from(group: &Group) -> Self {
        let reduction =
            |r: &Reduction| v1::Reduction { site: r.site.0, roots: r.roots.iter().map(|w| w.0).collect() };
        let owner =
            |(part, worker): (&PartId, &WorkerId)| v1::Owner { part: Some((*part).into()), worker: worker.0 };
        Self {
            epoch: group.epoch.0,
            package: group.package.0,
            members: group.members.iter().map(|w| w.0).collect(),
            reductions: group.reductions.iter().map(reduction).collect(),
            owners: group.owners.iter().map(owner).collect(),
        }
    }
}

impl TryFrom<v1::Group> for Group {
    type Error = WireError;

    fn try_from(group: v1::Group) -> Result<Self> {
        let members = ascending("members", group.members.into_iter().map(WorkerId), MOST_WORKERS)?;
        let owners = each::<_, OwnerEntry>("owners", group.owners, MOST_SITES)?;
        Ok(Self {
            epoch: Epoch(group.epoch),
            package: PackageId(group.package),
            members: members.into_iter().collect(),
            reductions: each("reductions", group.reductions, MOST_SITES)?,
            owners: keyed("owners", owners.into_iter().map(|o| o.0).collect())?,
        })
    }
}

impl TryFrom<v1::Reduction> for Reduction {
    type Error = WireError;

    fn try_from(reduction: v1::Reduction) -> Result<Self> {
        count("roots", reduction.roots.len(), MOST_WORKERS)?;
        Ok(Self { site: SiteId(reduction.site), roots: reduction.roots.into_iter().map(WorkerId).collect() })
    }
}

/// An entry of [`Group::owners`].
struct OwnerEntry((PartId, WorkerId));

impl TryFrom<v1::Owner> for OwnerEntry {
    type Error = WireError;

    fn try_from(owner: v1::Owner) -> Result<Self> {
        Ok(Self((inner("part", owner.part)?, WorkerId(owner.worker))))
    }
}
