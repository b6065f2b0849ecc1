//! Commit: when all weights of a package are in the store, its manifest follows and makes them count.

use std::sync::Arc;

use obsdiff_proto::PackageId;

use crate::state::Commit;
use crate::{Action, Core, Event, Failure, Manifest};

impl Core {
    /// Sends the manifest of a package that is wholly solved to the store, for the first time or again.
    pub(crate) fn decide_commit(&mut self) {
        let Some(open) = self.open.as_mut().filter(|open| open.all_solved()) else { return };
        let (tries, begun) = match open.commit {
            None => (1, self.now),
            Some(Commit { tries, begun, again: Some(again) }) if again <= self.now => (tries + 1, begun),
            Some(_) => return,
        };
        open.commit = Some(Commit { tries, begun, again: None });
        self.out.push(Action::Commit(Arc::new(Manifest {
            package: open.package,
            exponents: self.exponents.clone().unwrap_or_default(),
            hardware: self.hardware.clone(),
            parts: open.solved.clone(),
        })));
    }

    /// The manifest is durable: the package is over, and the next one opens.
    pub(crate) fn merge_committed(&mut self, package: PackageId) {
        if !self.open.as_ref().is_some_and(|open| open.package == package && open.commit.is_some()) {
            return;
        }
        self.committed += 1;
        self.attempt = None;
        self.group_failures = Default::default();
        self.failures.clear();
        let before = self.open.take();
        self.open_package();
        match (before, &mut self.open) {
            // The same sums serve the next package: workers keep the shards that they hold.
            (Some(before), Some(open)) if self.job.plan.keeps_sums(open.package) => {
                open.ledger = before.ledger;
                self.touch_all();
            }
            _ => {
                self.new_tallies();
                self.out.push(Action::ForgetSums);
            }
        }
        self.emit(Event::Committed { package });
    }

    /// The store did not take the manifest, or its answer was lost: putting it again is harmless.
    pub(crate) fn merge_commit_failed(&mut self, package: PackageId, error: String) {
        let (now, options, at_stake) = (self.now, &self.job.options, self.at_stake());
        let commit =
            self.open.as_mut().filter(|open| open.package == package).and_then(|open| open.commit.as_mut());
        let Some(commit) = commit.filter(|c| c.again.is_none()) else { return };
        let tries = commit.tries;
        if tries >= options.store_tries && now - commit.begun >= at_stake {
            return self.fail(Failure::Store { package, tries, error });
        }
        commit.again = Some(now + options.wait_after(tries));
        self.emit(Event::Retried { what: format!("the manifest of package {package}"), tries, error });
    }
}
