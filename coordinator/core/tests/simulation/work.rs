//! How a process follows its orders: one at a time, each for a while.

use obsdiff_core::{Command, Encoding, Fault, Order, Solved};
use obsdiff_proto::PackageId;

use crate::event::SimulatedEvent;
use crate::task::{applied, receipt};
use crate::world::SimulatedWorld;

impl SimulatedWorld {
    /// Finishes what is due and begins what is next.
    pub(crate) fn work(&mut self, process: usize, lives: u64) {
        let it = &self.processes[process];
        let Some(life) = it.life.as_ref().filter(|life| it.lives == lives && !life.stuck) else { return };
        match life.running {
            Some((order, until)) if until <= self.now => self.complete(process, order),
            Some(_) => return,
            None => {}
        }
        self.begin(process);
    }

    fn begin(&mut self, process: usize) {
        let Some(life) = &mut self.processes[process].life else { return };
        let Some(command) = life.next() else { return };
        let order = command.order();
        let wait = match &command {
            Command::Calibrate { .. } | Command::Pilot { .. } => self.processes[process].pace,
            Command::Reduce { .. } => u64::MAX / 2,
            Command::Export => self.rng.within(100..3000),
            _ => self.rng.within(1..1500),
        };
        let Some(life) = &mut self.processes[process].life else { return };
        life.running = Some((order, self.now.saturating_add(wait)));
        life.status.progress += 1;
        let lives = self.processes[process].lives;
        match command {
            Command::Reduce { epoch } => self.bring(process, epoch),
            Command::Apply { .. } => {
                self.quit_group(process);
                self.after(wait, SimulatedEvent::Work { process, lives });
            }
            _ => self.after(wait, SimulatedEvent::Work { process, lives }),
        }
    }

    fn complete(&mut self, process: usize, order: Order) {
        let mishap = self.knobs.mishaps > 0 && self.rng.once_in(25);
        self.knobs.mishaps -= u32::from(mishap);
        let down = self.store_down_until > self.now;
        let pace = self.processes[process].pace();
        let sites = self.task.pilot.clone();
        let singular = self.task.singular;
        let bits = self.task.bits(self.processes[process].hardware);
        let plan = self.task.plan.clone();
        let packages = plan.packages.len();
        let store = self.store.clone();
        let spoils = self.rng.once_in(2);
        let overflowing = self.overflows_early(process, order);
        let Some(life) = &mut self.processes[process].life else { return };
        life.running = None;
        if order == Order::Encode {
            life.status.encoding = Encoding::Done;
            self.encoded = true;
            let wait = self.rng.within(0..2000);
            let lives = self.processes[process].lives;
            self.after(wait, SimulatedEvent::Prepared { process, lives });
        }
        let Some(life) = &mut self.processes[process].life else { return };
        let Some(command) = life.queue.iter().find(|c| c.order() == order).cloned() else { return };
        match command {
            Command::Pilot { .. } => life.status.pilot = Some(sites.into()),
            Command::Restore { .. } if down => {
                life.mark_failed(order, Fault::Transient("the store is down".to_owned()));
            }
            Command::Restore { .. } if mishap => {
                life.status.sums.spoiled = spoils;
                life.mark_failed(order, Fault::Transient("damaged".to_owned()));
            }
            Command::Restore { saved, opening, .. } => life.restore(order, (&saved, &opening), &self.sums),
            Command::Calibrate { .. } if overflowing.is_some() => {
                life.status.sums.spoiled = true;
                life.mark_failed(order, overflowing.unwrap_or(Fault::Transient(String::new())));
            }
            Command::Calibrate { .. } if mishap => {
                life.status.sums.spoiled = spoils;
                life.mark_failed(order, Fault::Transient("out of memory".to_owned()));
            }
            Command::Calibrate { shard, .. } => {
                *life.counts.entry(shard).or_insert(0) += 1;
                life.status.sums.held.insert(shard);
                life.status.pace = Some(pace);
            }
            Command::Solve { ref part, .. } if singular.is_some_and(|site| part.sites.contains(&site)) => {
                life.mark_failed(order, Fault::Fatal("is singular".to_owned()));
            }
            Command::Solve { .. } | Command::Apply { .. } | Command::Export if down || mishap => {
                life.mark_failed(order, Fault::Transient("the store is down".to_owned()));
            }
            Command::Solve { part, .. } => {
                let exponents = part.sites.iter().map(|site| (*site, life.grams[site])).collect();
                let receipt = receipt(life.weights, part.id, &exponents, bits);
                life.status.solved.insert(part.id, Solved { exponents, receipt });
            }
            Command::Apply { packages } => {
                life.weights = applied(&store[packages as usize - 1]);
                let kept = packages == life.status.applied + 1 && plan.keeps_sums(PackageId(packages));
                life.status.applied = packages;
                life.status.solved.clear();
                if kept {
                    let sums = &mut life.status.sums;
                    sums.package = sums.package.map(|_| PackageId(packages));
                } else {
                    life.status.sums.held.clear();
                    life.status.sums.saved = None;
                    life.status.sums.spoiled = true;
                    life.counts.clear();
                }
            }
            Command::Export => {
                assert_eq!(life.status.applied as usize, packages, "exported before everything was applied");
                life.status.exported = true;
            }
            Command::Encode { .. }
            | Command::Abort { .. }
            | Command::Discard { .. }
            | Command::Form { .. }
            | Command::Reduce { .. } => {}
        }
        life.finish(order);
        let leaves = std::mem::take(&mut life.status.saving);
        if leaves || matches!(order, Order::Calibrate { .. } | Order::Restore { .. }) {
            self.save_sums(process);
        }
        self.report(process);
    }

    /// A worker that has most of the shards notices an overflow by itself.
    fn overflows_early(&self, process: usize, order: Order) -> Option<Fault> {
        let life = self.processes[process].life.as_ref()?;
        let (Order::Calibrate { .. }, true) = (order, 2 * life.counts.len() >= self.task.plan.shards.len())
        else {
            return None;
        };
        let site = life.exponents.iter().find(|(site, e)| **e > self.task.limits[site])?;
        Some(Fault::Overflow { site: *site.0, exponent: *site.1 })
    }
}
