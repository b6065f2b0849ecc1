//! Reduce: when every shard is held, those who hold them and those who will solve form a group at a new epoch, and each site's
//! Gram goes to its owners.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use obsdiff_proto::{Epoch, WorkerId};

use crate::state::{OpenPackage, ReductionAttempt};
use crate::{Core, Event, Failure, Group, GroupStage, GroupStatus, PartId, Reduction, assignment};

impl Core {
    /// Takes in how far a worker is with a group.
    pub(crate) fn merge_group(&mut self, worker: WorkerId, status: Option<&GroupStatus>) {
        let (Some(status), Some(member)) = (status, self.members.get_mut(&worker)) else { return };
        let epoch = status.epoch;
        let closed = if status.stage.is_closed() { epoch } else { Epoch(epoch.0.saturating_sub(1)) };
        member.closed = member.closed.max(closed);
        let current = self.attempt.as_ref().is_some_and(|a| a.group.epoch == epoch);
        if !current {
            // A group of an earlier life or of a lost attempt keeps its members from the next one.
            if matches!(status.stage, GroupStage::Forming | GroupStage::Formed) {
                member.abort = member.abort.max(epoch);
            }
            return;
        }
        let within = |a: &&mut ReductionAttempt| a.group.members.binary_search(&worker).is_ok();
        let Some(attempt) = self.attempt.as_mut().filter(within) else { return };
        match &status.stage {
            GroupStage::Forming => {}
            // It keeps the Grams it received.
            GroupStage::Failed(_) | GroupStage::Aborted if attempt.all_received() => {}
            GroupStage::Failed(error) => self.set_back(format!("worker {worker}: {error}")),
            GroupStage::Aborted => self.set_back(format!("worker {worker} left the group")),
            GroupStage::Formed | GroupStage::Reduced => {
                attempt.formed.insert(worker);
                let roots = attempt.group.reductions.iter().filter(|r| r.roots.contains(&worker));
                let arrived = roots.filter(|r| status.received.contains(&r.site)).map(|r| (r.site, worker));
                let before = attempt.all_received();
                attempt.received.extend(arrived);
                if status.stage == GroupStage::Reduced {
                    attempt.through.insert(worker);
                }
                if attempt.all_received() && !before {
                    self.emit(Event::Arrived { epoch });
                }
            }
        }
    }

    /// Gives up groups that cannot continue, lets formed ones reduce, and forms the next one.
    pub(crate) fn decide_group(&mut self) {
        self.give_up_group();
        self.let_group_reduce();
        self.close_group();
        self.form_group();
    }

    /// Whether a group waits for this worker: for its sums, or for the parts it solves.
    pub(crate) fn group_needs(&self, worker: WorkerId) -> bool {
        let (Some(open), Some(attempt)) = (&self.open, &self.attempt) else { return false };
        let member = attempt.group.members.binary_search(&worker).is_ok();
        let owes = |(part, owner): (_, &WorkerId)| *owner == worker && !open.solved.contains_key(part);
        member && (!attempt.all_received() || attempt.group.owners.iter().any(owes))
    }

    fn give_up_group(&mut self) {
        let (Some(attempt), Some(open)) = (&self.attempt, &self.open) else { return };
        if attempt.all_received() {
            return;
        }
        if open.all_solved() {
            self.break_group("every part was solved elsewhere".to_owned());
        } else if let Some(worker) = attempt.lost {
            self.break_group(format!("worker {worker} left"));
        } else if !open.ledger.all_held() {
            self.break_group("sums were dropped".to_owned());
        } else if !attempt.reducing && self.now >= attempt.begun + self.job.options.form {
            let missing: Vec<_> =
                attempt.group.members.iter().filter(|w| !attempt.formed.contains(w)).collect();
            self.set_back(format!("workers {missing:?} did not reach the others in time"));
        }
    }

    fn let_group_reduce(&mut self) {
        let Some(attempt) = self.attempt.as_mut().filter(|a| !a.reducing) else { return };
        if attempt.formed.len() == attempt.group.members.len() {
            attempt.reducing = true;
            let epoch = attempt.group.epoch;
            self.emit(Event::Formed { epoch });
            self.touch_all();
        }
    }

    fn form_group(&mut self) {
        let complete = |open: &&OpenPackage| open.ledger.all_held() && !open.all_solved();
        let Some(open) = self.open.as_ref().filter(complete) else { return };
        if self.attempt.is_some() || !self.settled() || self.now < self.group_failures.again {
            return;
        }
        // Who holds a survey's sums joins no group before it has applied what the survey found.
        let up_to_date =
            |worker| self.members.get(&worker).is_none_or(|member| member.applied == self.committed);
        if !open.ledger.holders().all(up_to_date) {
            return;
        }
        let solvers: Vec<_> = self.ready().map(|(worker, m)| (worker, m.speed)).collect();
        if solvers.is_empty() {
            return;
        }
        let costs: Vec<_> = open.unsolved().map(|part| (part.id, part.cost)).collect();
        let owners = assignment::owners(&costs, &solvers);
        let members: BTreeSet<_> = open.ledger.holders().chain(owners.values().copied()).collect();
        let reductions = if open.ledger.total() == 0 { Vec::new() } else { self.reductions(open, &owners) };
        let epoch = Epoch((u64::from(self.job.life) << 32) + u64::from(self.epochs) + 1);
        let size = members.len();
        self.attempt = Some(ReductionAttempt {
            begun: self.now,
            formed: BTreeSet::new(),
            reducing: false,
            through: BTreeSet::new(),
            received: BTreeSet::new(),
            expected: reductions.iter().map(|r| r.roots.len()).sum(),
            lost: None,
            group: Arc::new(Group {
                epoch,
                package: open.package,
                members: members.into_iter().collect(),
                reductions,
                owners,
            }),
        });
        self.epochs += 1;
        self.emit(Event::Grouped { epoch, members: size });
        self.touch_all();
    }

    /// Every site's way to the owners of the parts that need it, by site.
    fn reductions(&self, open: &OpenPackage, owners: &BTreeMap<PartId, WorkerId>) -> Vec<Reduction> {
        let mut roots: BTreeMap<_, BTreeSet<WorkerId>> = BTreeMap::new();
        for (part, owner) in owners {
            for site in open.parts.get(part).into_iter().flat_map(|part| &part.sites) {
                roots.entry(*site).or_default().insert(*owner);
            }
        }
        let reduction =
            |(site, roots): (_, BTreeSet<_>)| Reduction { site, roots: roots.into_iter().collect() };
        roots.into_iter().map(reduction).collect()
    }

    /// Gives up the group because it failed by itself, not by losing a worker: not too often in a row, and not at once again.
    fn set_back(&mut self, error: String) {
        if self.group_failures.count == 0 {
            self.group_failures.since = self.now;
        }
        self.group_failures.count += 1;
        let tries = self.group_failures.count;
        if tries >= self.job.options.groups && self.now - self.group_failures.since >= self.at_stake() {
            return self.fail(Failure::Groups { tries, error });
        }
        self.group_failures.again = self.now + self.job.options.wait_after(tries);
        self.break_group(error);
    }

    /// Closes the group at all its members that are still here.
    pub(crate) fn break_group(&mut self, why: String) {
        let Some(attempt) = self.attempt.take() else { return };
        let epoch = attempt.group.epoch;
        for worker in &attempt.group.members {
            if let Some(member) = self.members.get_mut(worker) {
                member.abort = member.abort.max(epoch);
            }
        }
        self.emit(Event::Broken { epoch, why });
        self.touch_all();
    }
}
