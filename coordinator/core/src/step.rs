//! One step: takes in what happened, decides, and returns what to do.

use std::mem;
use std::time::Duration;

use obsdiff_proto::WorkerId;

use crate::state::ChangedWorkers;
use crate::{Action, Command, Core, Dismissal, Event, Failure, Input, Order, Outcome};

impl Core {
    /// Takes in one input at time `now` (from any fixed start; it never runs back) and returns what is to be done about it.
    ///
    /// After [`Action::Finish`] only newcomers get an answer: that the job is over.
    pub fn step(&mut self, now: Duration, input: Input) -> Vec<Action> {
        self.now = self.now.max(now);
        if let Some(outcome) = &self.outcome {
            return match input {
                Input::Joined { worker, .. } => {
                    vec![Action::Dismiss { worker, why: Dismissal::Over(outcome.clone()) }]
                }
                _ => Vec::new(),
            };
        }
        self.take(input);
        self.decide();
        self.dispatch();
        let actions = mem::take(&mut self.out);
        debug_assert_eq!(self.check(&actions), Ok(()));
        actions
    }

    fn take(&mut self, input: Input) {
        match input {
            Input::Joined { worker, hello } => self.join(worker, &hello),
            Input::Left { worker, why } => self.leave(worker, why),
            Input::Reported { worker, status } => self.merge(worker, &status),
            Input::Committed { package } => self.merge_committed(package),
            Input::CommitFailed { package, error } => self.merge_commit_failed(package, error),
            Input::Exported if self.all_committed() => self.finish(Outcome::Done),
            Input::Exported => {}
            Input::Resumed { pause } => self.resume(pause),
            Input::Tick => self.expire(),
            Input::Cancel => self.finish(Outcome::Cancelled),
        }
    }

    /// Each decision is made from facts alone and finds nothing to do the second time.
    fn decide(&mut self) {
        let decisions = [
            Self::decide_group,
            Self::decide_leaving,
            Self::decide_encoder,
            Self::decide_pilot,
            Self::decide_commit,
            Self::decide_leases,
            Self::decide_export,
        ];
        for decide in decisions {
            if self.outcome.is_none() {
                decide(self);
            }
        }
    }

    /// Sends the orders that follow from the facts and are not in their worker's hands.
    fn dispatch(&mut self) {
        let workers: Vec<_> =
            match mem::replace(&mut self.changed_workers, ChangedWorkers::Some(Default::default())) {
                ChangedWorkers::All => self.members.keys().copied().collect(),
                ChangedWorkers::Some(workers) => workers.into_iter().collect(),
            };
        for worker in workers {
            let wanted = self.orders(worker);
            let Some(member) = self.members.get_mut(&worker) else { continue };
            member.due.retain(|order, _| wanted.contains(order));
            let (now, patience) = (self.now, self.job.options.patience);
            let mut unsent = Vec::new();
            for order in wanted {
                let due = member.due.entry(order).or_insert(now);
                if *due <= now && !member.in_hand.contains(&order) {
                    *due = now + patience;
                    unsent.push(order);
                }
            }
            for order in unsent {
                if let Some(command) = self.command(worker, order) {
                    self.out.push(Action::Send { worker, command });
                }
            }
        }
    }

    /// An order with what is needed to follow it.
    fn command(&self, worker: WorkerId, order: Order) -> Option<Command> {
        Some(match order {
            Order::Encode => Command::Encode { is_stored: self.encoded },
            Order::Abort { epoch } => Command::Abort { epoch },
            Order::Apply { packages } => Command::Apply { packages },
            Order::Discard { tally } => Command::Discard { tally },
            Order::Pilot => Command::Pilot { shard: self.job.plan.shards.first()?.id },
            Order::Calibrate { tally, shard } => {
                Command::Calibrate { tally, shard, opening: self.open.as_ref()?.opening.clone() }
            }
            Order::Restore { tally, first } => {
                let open = self.open.as_ref()?;
                let saved = open.ledger.restoring(worker).iter().find(|saved| saved.first() == first)?;
                Command::Restore { tally, saved: saved.clone(), opening: open.opening.clone() }
            }
            Order::Form { .. } => Command::Form {
                tally: self.members.get(&worker)?.tally,
                holds: self.open.as_ref()?.ledger.held_by(worker),
                group: self.attempt.as_ref()?.group.clone(),
            },
            Order::Reduce { epoch } => Command::Reduce { epoch },
            Order::Solve { epoch, part } => {
                Command::Solve { epoch, part: self.open.as_ref()?.parts.get(&part)?.clone() }
            }
            Order::Export => Command::Export,
        })
    }

    pub(crate) fn emit(&mut self, event: Event) {
        self.out.push(Action::Emit(event));
    }

    pub(crate) fn fail(&mut self, failure: Failure) {
        self.finish(Outcome::Failed(failure));
    }

    /// Ends the job and closes every session.
    pub(crate) fn finish(&mut self, outcome: Outcome) {
        if self.outcome.is_some() {
            return;
        }
        for worker in mem::take(&mut self.members).into_keys() {
            self.out.push(Action::Dismiss { worker, why: Dismissal::Over(outcome.clone()) });
        }
        self.open = None;
        self.attempt = None;
        self.out.push(Action::Finish(outcome.clone()));
        self.outcome = Some(outcome);
    }
}
