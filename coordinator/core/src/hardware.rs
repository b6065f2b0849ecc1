//! One kind of hardware for a job, so that its bits do not depend on who did what: the kind of the first worker that joins.

use obsdiff_proto::WorkerId;

use crate::{Action, Core, Dismissal, Event};

/// Kinds of hardware that are reported and kept. A job meets a few, but a worker may name a new one each time it comes.
const MOST_KINDS: usize = 16;

impl Core {
    /// Why a worker on this kind of hardware stands by, if it does.
    pub fn other_hardware(&self, worker: &str) -> Option<Dismissal> {
        let job = self.hardware.as_deref().filter(|job| *job != worker)?;
        Some(Dismissal::OtherHardware { job: job.to_owned(), worker: worker.to_owned() })
    }

    /// Sends a worker of another kind away, and reports its kind if that is new and not one of too many.
    pub(crate) fn stand_by(&mut self, worker: WorkerId, why: Dismissal) {
        if let Dismissal::OtherHardware { job, worker } = &why
            && self.standing_by.len() < MOST_KINDS
            && self.standing_by.insert(worker.clone())
        {
            self.emit(Event::StandingBy { job: job.clone(), worker: worker.clone() });
        }
        self.out.push(Action::Dismiss { worker, why });
    }

    /// The first worker decides for all that follow, in later lives too.
    pub(crate) fn take_hardware(&mut self, worker: &str) {
        if self.hardware.is_none() && !self.job.options.mixed_hardware {
            self.hardware = Some(worker.to_owned());
            self.out.push(Action::SaveHardware(worker.to_owned()));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use obsdiff_proto::{
        Inventory, Linear, LinearId, LinearTarget, Package, PackageId, Plan, Shard, ShardId, Site, SiteId,
        StreamId, Target,
    };

    use super::*;
    use crate::{Exponents, Hello, Input, Job, Options, Status};

    /// One linear, gathered over one shard, on one kind of hardware.
    fn job() -> Job {
        let name = || "l".to_owned();
        let (site, linear) = (SiteId(0), LinearId(0));
        let package = Package {
            id: PackageId(0),
            units: 0..0,
            sites: vec![site],
            linears: vec![LinearTarget { linear, target: Target::NToM { n: 2, m: 4 } }],
            survey: false,
        };
        Job {
            inventory: Arc::new(Inventory {
                sites: vec![Site {
                    name: name(),
                    width: 4,
                    stream: StreamId(0),
                    joined: Vec::new(),
                    linears: vec![linear],
                }],
                linears: vec![Linear { name: name(), rows: 8, bias: true, site }],
                ..Inventory::default()
            }),
            plan: Arc::new(Plan {
                packages: vec![package],
                shards: vec![Shard { id: ShardId(0), prompts: 0..4 }],
                budget: None,
            }),
            committed: 0,
            exponents: None,
            hardware: Some("a processor".to_owned()),
            saved: Vec::new(),
            life: 0,
            options: Options::default(),
        }
    }

    #[test]
    fn workers_that_name_ever_new_kinds_fill_no_memory() {
        let mut core = Core::new(job(), Duration::ZERO).unwrap();
        let mut reported = 0;
        for worker in 1..=3 * MOST_KINDS as u64 {
            let hello = Hello {
                instance: u128::from(worker),
                speed: 1,
                hardware: format!("processor {worker}"),
                exponents: Exponents::new(),
                status: Status::default(),
            };
            let joined = Input::Joined { worker: WorkerId(worker), hello: Box::new(hello) };
            let actions = core.step(Duration::ZERO, joined);
            let sent_away = |action: &Action| matches!(action, Action::Dismiss { .. });
            assert!(actions.iter().any(sent_away), "worker {worker} is told why it stands by");
            let is_report = |action: &&Action| matches!(action, Action::Emit(Event::StandingBy { .. }));
            reported += actions.iter().filter(is_report).count();
        }
        assert_eq!([reported, core.standing_by.len()], [MOST_KINDS; 2]);
    }
}
