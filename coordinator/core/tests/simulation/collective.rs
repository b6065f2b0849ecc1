//! Groups of workers. What a root receives is counted shard by shard: a sum that lacks one or has one twice ends the run.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use obsdiff_core::{Exponents, Fault, Group, GroupStage, Order, PartId};
use obsdiff_proto::{Epoch, ShardId, SiteId};

use crate::event::SimulatedEvent;
use crate::world::SimulatedWorld;

/// A group as its members see it.
pub(crate) struct SimulatedCollective {
    group: Arc<Group>,
    /// Who entered.
    entered: BTreeSet<usize>,
    /// What each rank brings.
    brought: BTreeMap<usize, SimulatedSums>,
    /// Reductions complete.
    next: usize,
    broken: bool,
}

/// What a rank brings: how often each shard is in it, with which exponents and weights.
struct SimulatedSums {
    counts: BTreeMap<ShardId, u32>,
    exponents: Exponents,
    weights: u64,
    bits: &'static str,
}

impl SimulatedWorld {
    /// A process joins a group.
    pub(crate) fn enter(&mut self, process: usize, epoch: Epoch, group: Option<Arc<Group>>) {
        self.leave_groups(process, Epoch(epoch.0 - 1), false);
        let Some(group) = group else { return };
        let fresh = !self.collectives.contains_key(&epoch);
        let size = group.members.len();
        let new = SimulatedCollective {
            group,
            entered: BTreeSet::new(),
            brought: BTreeMap::new(),
            next: 0,
            broken: false,
        };
        let collective = self.collectives.entry(epoch).or_insert(new);
        collective.entered.insert(process);
        let (broken, full) = (collective.broken, collective.entered.len() == size);
        if fresh {
            self.after(20_000, SimulatedEvent::FormBy { epoch });
        }
        let wait = self.rng.within(1..60);
        if broken {
            let lives = self.processes[process].lives;
            self.after(wait, SimulatedEvent::Broken { epoch, process, lives });
        } else if full {
            self.after(wait, SimulatedEvent::Formed { epoch });
        }
    }

    pub(crate) fn formed(&mut self, epoch: Epoch) {
        let Some(collective) = self.collectives.get(&epoch).filter(|c| !c.broken) else { return };
        for process in collective.entered.clone() {
            let Some(life) = &mut self.processes[process].life else { continue };
            if let Some(group) =
                life.status.group.as_mut().filter(|g| g.epoch == epoch && g.stage == GroupStage::Forming)
            {
                group.stage = GroupStage::Formed;
                life.finish(Order::Form { epoch });
                let lives = self.processes[process].lives;
                self.report(process);
                self.after(0, SimulatedEvent::Work { process, lives });
            }
        }
    }

    pub(crate) fn form_by(&mut self, epoch: Epoch) {
        if self.collectives.get(&epoch).is_some_and(|c| c.entered.len() < c.group.members.len()) {
            self.break_collective(epoch, None, false);
        }
    }

    /// A rank begins its reductions; the last one to begin lets the first of them run.
    pub(crate) fn bring(&mut self, process: usize, epoch: Epoch) {
        let Some(life) = &self.processes[process].life else { return };
        let bits = self.task.bits(self.processes[process].hardware);
        let (counts, exponents, weights) = (life.counts.clone(), life.exponents.clone(), life.weights);
        let sums = SimulatedSums { counts, exponents, weights, bits };
        let Some(collective) = self.collectives.get_mut(&epoch).filter(|c| !c.broken) else { return };
        collective.brought.insert(process, sums);
        if collective.brought.len() == collective.group.members.len() {
            let wait = self.rng.within(1..300);
            self.after(wait, SimulatedEvent::Reduced { epoch });
        }
    }

    /// The next site's Gram arrives at its roots, if every rank is awake and reachable.
    pub(crate) fn reduced(&mut self, epoch: Epoch) {
        let Some(collective) = self.collectives.get(&epoch).filter(|c| !c.broken) else { return };
        let (group, next) = (collective.group.clone(), collective.next);
        let away =
            |p: &usize| self.processes[*p].paused_until > self.now || self.processes[*p].cut_until > self.now;
        if collective.entered.iter().any(away) {
            return self.break_collective(epoch, None, true);
        }
        let Some(reduction) = group.reductions.get(next) else {
            for process in collective.entered.clone() {
                let Some(life) = &mut self.processes[process].life else { continue };
                if let Some(status) = life.status.group.as_mut().filter(|g| g.epoch == epoch) {
                    status.stage = GroupStage::Reduced;
                    life.running = None;
                    life.finish(Order::Reduce { epoch });
                }
                let lives = self.processes[process].lives;
                self.report(process);
                self.after(0, SimulatedEvent::Work { process, lives });
            }
            return;
        };
        let site = reduction.site;
        let exponent = self.gram(epoch, site);
        for root in &reduction.roots {
            let Some((process, _)) = self.sessions.get(root).copied() else { continue };
            let overflows = exponent > self.task.limits[&site];
            let Some(life) = self.life_of(*root) else { continue };
            if overflows {
                let part = PartId { package: group.package, site, index: 0 };
                life.mark_failed(Order::Solve { epoch, part }, Fault::Overflow { site, exponent });
            } else if let Some(status) = life.status.group.as_mut().filter(|g| g.epoch == epoch) {
                status.received.insert(site);
                life.grams.insert(site, exponent);
            }
            self.report(process);
            let lives = self.processes[process].lives;
            self.after(0, SimulatedEvent::Work { process, lives });
        }
        if let Some(collective) = self.collectives.get_mut(&epoch) {
            collective.next += 1;
        }
        let wait = self.rng.within(1..300);
        self.after(wait, SimulatedEvent::Reduced { epoch });
    }

    /// Sums a site over the ranks, and counts: every shard once, all with the same exponent and weights. Says the exponent.
    fn gram(&self, epoch: Epoch, site: SiteId) -> i32 {
        let collective = &self.collectives[&epoch];
        let mut counts = BTreeMap::new();
        let mut origins = BTreeSet::new();
        for sums in collective.brought.values() {
            for (shard, count) in &sums.counts {
                *counts.entry(*shard).or_insert(0) += count;
            }
            if !sums.counts.is_empty() {
                origins.insert((sums.exponents[&site], sums.weights, sums.bits));
            }
        }
        let once: BTreeMap<_, u32> = self.task.plan.shards.iter().map(|s| (s.id, 1)).collect();
        assert_eq!(counts, once, "epoch {epoch} sums shards of site {site} other than once each");
        assert_eq!(
            origins.len(),
            1,
            "epoch {epoch} mixes exponents, weights or hardware of site {site}: {origins:?}"
        );
        origins.first().map_or(0, |o| o.0)
    }

    /// A process is out of every group up to an epoch: their other members notice, soon if its process died.
    pub(crate) fn leave_groups(&mut self, process: usize, upto: Epoch, died: bool) {
        let within: Vec<_> = self
            .collectives
            .range(..=upto)
            .filter(|(_, c)| c.entered.contains(&process))
            .map(|(e, _)| *e)
            .collect();
        for epoch in within {
            self.break_collective(epoch, Some(process), !died);
        }
    }

    fn break_collective(&mut self, epoch: Epoch, by: Option<usize>, slowly: bool) {
        let Some(collective) = self.collectives.get_mut(&epoch).filter(|c| !c.broken) else { return };
        if collective.next >= collective.group.reductions.len() && !collective.brought.is_empty() {
            return;
        }
        collective.broken = true;
        for process in collective.entered.clone() {
            let lives = self.processes[process].lives;
            let wait = if slowly { self.rng.within(1000..6000) } else { self.rng.within(5..100) };
            if Some(process) != by {
                self.after(wait, SimulatedEvent::Broken { epoch, process, lives });
            }
        }
    }

    /// A process leaves the group it is in.
    pub(crate) fn quit_group(&mut self, process: usize) {
        let Some(life) = &mut self.processes[process].life else { return };
        let open = |stage: &GroupStage| matches!(stage, GroupStage::Forming | GroupStage::Formed);
        let Some(epoch) = life.status.group.as_ref().filter(|g| open(&g.stage)).map(|g| g.epoch) else {
            return;
        };
        life.abort(epoch);
        self.leave_groups(process, epoch, false);
    }

    pub(crate) fn broken(&mut self, epoch: Epoch, process: usize, lives: u64) {
        if self.processes[process].lives != lives {
            return;
        }
        let Some(life) = &mut self.processes[process].life else { return };
        if life.status.group.as_ref().is_some_and(|g| g.epoch == epoch && !g.stage.is_closed()) {
            life.fail_group(epoch, "a peer is gone");
            self.report(process);
            self.after(0, SimulatedEvent::Work { process, lives });
        }
    }
}
