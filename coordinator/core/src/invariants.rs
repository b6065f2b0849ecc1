//! What always holds. Debug builds check it after each step, and so do the tests.

use std::collections::BTreeSet;

use obsdiff_proto::{Epoch, PackageId, ShardId, WorkerId};
use thiserror::Error;

use crate::ledger::ShardHolder;
use crate::state::{ConnectedWorker, OpenPackage, ReductionAttempt};
use crate::{Action, Command, Core, Opening, Tally};

/// An invariant that does not hold: a fault of the coordinator, never of its user.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Violation {
    /// A shard has two holders, or none while it is not pending: it could count twice, or not at all.
    #[error("shards do not add up: {0}")]
    Shards(String),
    /// A shard is held by a worker that left, or whose weights are not those of the open package.
    #[error("worker {worker} holds shards, but {problem}")]
    Holder {
        /// Who holds them.
        worker: WorkerId,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// Grams are reduced that lack a shard, or that somebody outside the group has.
    #[error("epoch {epoch} reduces, but {problem}")]
    Reduction {
        /// The group's epoch.
        epoch: Epoch,
        /// What is wrong with it.
        problem: String,
    },
    /// A part has an owner outside the group, or is no part of the package.
    #[error(
        "epoch {epoch}: part {part} is owned by worker {owner}, who is not of the group, or is no part of its package"
    )]
    Owner {
        /// The group's epoch.
        epoch: Epoch,
        /// The part.
        part: crate::PartId,
        /// Its owner.
        owner: WorkerId,
    },
    /// An epoch was used before.
    #[error("epoch {0} is not the last one given out")]
    Epoch(Epoch),
    /// A package is committed out of order, or before all of it is solved.
    #[error("package {package} is committed after {committed} others, with {missing} parts unsolved")]
    Commit {
        /// The package.
        package: PackageId,
        /// Packages committed before.
        committed: u32,
        /// Parts whose weights are not in the store.
        missing: usize,
    },
    /// Something is asked of a worker that left, or one is sent away that stays.
    #[error("an action for worker {0} that does not fit its session")]
    Stranger(WorkerId),
    /// Something is asked of a worker that is not ready.
    #[error("worker {0} is asked for something while it prepares")]
    Preparing(WorkerId),
    /// Two workers encode the same prompts, or one that cannot.
    #[error("worker {0} is asked to encode out of turn")]
    Encoding(WorkerId),
    /// A worker is asked to run a shard that it has no lease of.
    #[error("worker {worker} is sent shard {shard} without a lease of its present tally")]
    Lease {
        /// The worker.
        worker: WorkerId,
        /// The shard.
        shard: ShardId,
    },
    /// Something is asked for after the end, or somebody is still there.
    #[error("the job is over, but not everything ended")]
    AfterTheEnd,
}

impl Core {
    /// Checks every invariant on the state after a step and on the actions that the step returned.
    ///
    /// # Errors
    /// The first one that does not hold.
    pub fn check(&self, actions: &[Action]) -> Result<(), Violation> {
        if let Some(open) = &self.open {
            self.check_shards(open)?;
            self.check_package(open)?;
            self.attempt.as_ref().map_or(Ok(()), |attempt| self.check_attempt(attempt, open))?;
        }
        self.check_end(actions)?;
        actions.iter().try_for_each(|action| self.check_action(action))
    }

    /// A shard counts exactly once: it has one holder at most, who is here and on the right weights.
    fn check_shards(&self, open: &OpenPackage) -> Result<(), Violation> {
        open.ledger.check().map_err(Violation::Shards)?;
        // Those who hold a survey's sums may still have to apply what it found.
        let most_behind = u32::from(self.job.plan.keeps_sums(open.package));
        for worker in open.ledger.holders() {
            let problem = match self.members.get(&worker) {
                None => "left",
                Some(member) if member.applied + most_behind < self.committed => "has other weights",
                Some(member) if member.preparing => "is not ready",
                Some(_) => continue,
            };
            return Err(Violation::Holder { worker, problem });
        }
        Ok(())
    }

    /// Packages are opened in order, and what is solved belongs to them.
    fn check_package(&self, open: &OpenPackage) -> Result<(), Violation> {
        let missing = open.parts.keys().filter(|part| !open.solved.contains_key(part)).count();
        let strange = open.solved.keys().any(|part| !open.parts.contains_key(part));
        if open.package.0 != self.committed || strange || (open.commit.is_some() && missing > 0) {
            return Err(Violation::Commit { package: open.package, committed: self.committed, missing });
        }
        Ok(())
    }

    /// A Gram is reduced only when every shard is held by a live worker of the epoch.
    fn check_attempt(&self, attempt: &ReductionAttempt, open: &OpenPackage) -> Result<(), Violation> {
        let group = &attempt.group;
        let epoch = group.epoch;
        if epoch.0 != (u64::from(self.job.life) << 32) + u64::from(self.epochs) {
            return Err(Violation::Epoch(epoch));
        }
        let within = |worker: &WorkerId| group.members.binary_search(worker).is_ok();
        for (part, owner) in &group.owners {
            if !within(owner) || !open.parts.contains_key(part) {
                return Err(Violation::Owner { epoch, part: *part, owner: *owner });
            }
        }
        if attempt.all_received() {
            return Ok(());
        }
        let wrong = |problem: String| Err(Violation::Reduction { epoch, problem });
        if group.package != open.package {
            return wrong(format!("package {} is open", open.package));
        }
        if !open.ledger.all_held() {
            return wrong(format!("{} of {} shards are held", open.ledger.held(), open.ledger.total()));
        }
        match open
            .ledger
            .holders()
            .find(|w| !within(w))
            .or_else(|| group.members.iter().copied().find(|w| !self.is_here(*w)))
        {
            Some(worker) => wrong(format!("worker {worker} is not of the group, or left")),
            None => Ok(()),
        }
    }

    fn check_end(&self, actions: &[Action]) -> Result<(), Violation> {
        let finish = actions.iter().position(|a| matches!(a, Action::Finish(_)));
        let ended = finish.is_none_or(|at| at + 1 == actions.len() && self.outcome.is_some());
        let empty = self.outcome.is_none() || (self.members.is_empty() && self.open.is_none());
        if ended && empty { Ok(()) } else { Err(Violation::AfterTheEnd) }
    }

    fn check_action(&self, action: &Action) -> Result<(), Violation> {
        match action {
            Action::Send { worker, .. } if !self.is_here(*worker) => Err(Violation::Stranger(*worker)),
            Action::Dismiss { worker, .. } if self.is_here(*worker) => Err(Violation::Stranger(*worker)),
            Action::Send { worker, command: Command::Encode { .. } } => match self.members.get(worker) {
                Some(member) if member.preparing && self.encodes(*worker, member) => Ok(()),
                _ => Err(Violation::Encoding(*worker)),
            },
            Action::Send { worker, .. } if self.members.get(worker).is_some_and(|m| m.preparing) => {
                Err(Violation::Preparing(*worker))
            }
            Action::Send { worker, command } => self.check_command(*worker, command),
            Action::Commit(manifest) => {
                let of_package = self.open.as_ref().filter(|open| open.package == manifest.package);
                let missing = of_package.map_or(usize::MAX, |open| open.parts.len() - manifest.parts.len());
                if manifest.package.0 == self.committed && missing == 0 {
                    return Ok(());
                }
                Err(Violation::Commit { package: manifest.package, committed: self.committed, missing })
            }
            Action::Dismiss { .. }
            | Action::Save(_)
            | Action::SaveHardware(_)
            | Action::ForgetSums
            | Action::Emit(_)
            | Action::Finish(_) => Ok(()),
        }
    }

    fn check_command(&self, worker: WorkerId, command: &Command) -> Result<(), Violation> {
        match command {
            Command::Calibrate { tally, shard, opening } => {
                self.check_lease(worker, (*tally, opening), &[*shard].into())
            }
            Command::Restore { tally, saved, opening } => {
                self.check_lease(worker, (*tally, opening), &saved.shards)
            }
            Command::Form { group, holds, .. } => {
                let held = self.open.as_ref().map(|open| open.ledger.held_by(worker));
                if held.is_some_and(|held| held == *holds) && group.members.contains(&worker) {
                    return Ok(());
                }
                let problem = format!("worker {worker} is asked for shards {holds:?}");
                Err(Violation::Reduction { epoch: group.epoch, problem })
            }
            Command::Reduce { epoch } | Command::Solve { epoch, .. } => {
                let attempt = self.attempt.as_ref().filter(|a| a.reducing && a.group.epoch == *epoch);
                if attempt.is_some_and(|a| a.group.members.contains(&worker)) {
                    return Ok(());
                }
                Err(Violation::Reduction { epoch: *epoch, problem: format!("worker {worker} is not of it") })
            }
            _ => Ok(()),
        }
    }

    /// A worker adds only what it has leased, to the sums that it is to have.
    fn check_lease(
        &self,
        worker: WorkerId,
        (tally, opening): (Tally, &Opening),
        shards: &BTreeSet<ShardId>,
    ) -> Result<(), Violation> {
        let is_it = |m: &&ConnectedWorker| m.tally == tally && m.applied == self.committed;
        let current = self.members.get(&worker).filter(is_it);
        let open = self.open.as_ref().filter(|open| current.is_some() && *open.opening == *opening);
        let leased = |shard: &ShardId| {
            open.is_some_and(|open| open.ledger.holder(*shard) == Some(ShardHolder::Leased(worker)))
        };
        match shards.iter().find(|shard| !leased(shard)) {
            Some(shard) => Err(Violation::Lease { worker, shard: *shard }),
            None => Ok(()),
        }
    }

    fn is_here(&self, worker: WorkerId) -> bool {
        self.members.contains_key(&worker)
    }
}
