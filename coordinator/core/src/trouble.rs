//! What goes wrong at workers: what is tried again, and what ends the job.

use obsdiff_proto::WorkerId;

use crate::state::Subject;
use crate::{Core, Dismissal, Event, Failure, Fault, Order, Trouble};

impl Core {
    /// Takes up a worker's last trouble, if it is new and about something still asked of it.
    pub(crate) fn merge_trouble(&mut self, worker: WorkerId, trouble: Option<&Trouble>) {
        let (Some(trouble), Some(member)) = (trouble, self.members.get_mut(&worker)) else { return };
        if trouble.serial <= member.trouble {
            return;
        }
        member.trouble = trouble.serial;
        if let Fault::Overflow { site, exponent } = trouble.fault {
            // Relevant as long as sums have this exponent, whatever the worker is asked for by now.
            return self.lower(site, exponent);
        }
        if !self.orders(worker).contains(&trouble.order) {
            return;
        }
        if let (Order::Restore { first, .. }, Fault::Transient(error)) = (trouble.order, &trouble.fault) {
            return self.give_up_saved(worker, first, error);
        }
        match &trouble.fault {
            Fault::Overflow { .. } => {}
            Fault::Fatal(error) => {
                let what = format!("{} at worker {worker}", trouble.order);
                self.fail(Failure::Fatal { what, error: error.clone() });
            }
            Fault::Environment(error) => {
                let what = format!("{} at worker {worker}", trouble.order);
                self.fail(Failure::Environment { what, error: error.clone() });
            }
            Fault::Transient(error) => self.try_again(worker, trouble.order, error),
        }
    }

    /// Counts a failure, and has the order tried again after a wait; after too many the job fails.
    fn try_again(&mut self, worker: WorkerId, order: Order, error: &str) {
        let subject = match order {
            Order::Pilot => Subject::Pilot,
            Order::Calibrate { shard, .. } => Subject::Shard(shard),
            Order::Solve { part, .. } => Subject::Part(part),
            Order::Apply { .. } => Subject::Apply(worker),
            Order::Export => Subject::Export,
            // A group's stage shows that it failed; dropping sums cannot fail; a worker that cannot encode leaves.
            Order::Encode
            | Order::Restore { .. }
            | Order::Form { .. }
            | Order::Reduce { .. }
            | Order::Abort { .. }
            | Order::Discard { .. } => return,
        };
        let tries = self.count(subject);
        let options = self.job.options.clone();
        let (most, of_worker) = match subject {
            Subject::Part(_) | Subject::Apply(_) | Subject::Export => (options.store_tries, false),
            _ => (options.tries, true),
        };
        let useless = match order {
            // One worker's trouble with weights that others can read, or may yet.
            Order::Apply { .. } => tries >= most && self.others_may_apply(worker),
            _ => of_worker && tries < most && self.count(Subject::Worker(worker)) >= options.worker_tries,
        };
        if useless {
            return self.dismiss(worker, Dismissal::Useless(format!("{order}: {error}")));
        }
        let given_up = match subject {
            // While much would be lost, time alone decides.
            Subject::Part(_) => {
                self.store_is_given_up() || (tries >= most && self.at_stake() <= options.store_patience)
            }
            _ => tries >= most,
        };
        if given_up {
            let what = order.to_string();
            return self.fail(Failure::TooOften { what, tries, worker, error: error.to_owned() });
        }
        self.emit(Event::Retried {
            what: format!("{order} at worker {worker}"),
            tries,
            error: error.to_owned(),
        });
        let again = self.now + options.wait_after(tries);
        if let Some(member) = self.members.get_mut(&worker) {
            member.due.insert(order, again);
        }
    }

    /// Takes note that a part could not be stored. Says whether none could be for too long.
    fn store_is_given_up(&mut self) -> bool {
        let (now, patience) = (self.now, self.job.options.store_patience.max(self.at_stake()));
        self.open.as_mut().is_some_and(|open| now - *open.unstored.get_or_insert(now) >= patience)
    }

    fn count(&mut self, subject: Subject) -> u32 {
        let failures = self.failures.entry(subject).or_insert(0);
        *failures += 1;
        *failures
    }

    /// Whether somebody else has applied the committed weights, or has not failed to.
    fn others_may_apply(&self, worker: WorkerId) -> bool {
        let failed = |other| self.failures.contains_key(&Subject::Apply(other));
        let mut others = self.members.iter().filter(|(other, _)| **other != worker);
        others.any(|(other, member)| member.applied == self.committed || !failed(*other))
    }
}
