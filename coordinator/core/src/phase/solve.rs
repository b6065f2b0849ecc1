//! Solve: owners prune their parts and put the weights in the store.

use std::collections::BTreeMap;

use obsdiff_proto::SiteId;

use crate::state::{OpenPackage, ReductionAttempt};
use crate::{Core, Exponents, PartId, Solved};

impl Core {
    /// Takes in parts whose weights are in the store, whoever solved them and in whatever epoch: the Gram of a site is the same
    /// each time, so the weights are. Only its exponents must be those that the manifest will name.
    pub(crate) fn merge_solved(&mut self, solved: &BTreeMap<PartId, Solved>) {
        let Some(open) = &mut self.open else { return };
        let of = |exponents: &Exponents, site: SiteId| exponents.get(&site).copied().unwrap_or(0);
        for (part, Solved { exponents, receipt }) in solved {
            let Some(known) = open.parts.get(part) else { continue };
            let as_asked = |site: &SiteId| of(exponents, *site) == of(&open.opening.exponents, *site);
            if known.sites.iter().all(as_asked) {
                open.solved.entry(*part).or_insert_with(|| {
                    open.unstored = None;
                    receipt.clone()
                });
            }
        }
    }

    /// Ends an attempt in which nobody is left who still solves.
    pub(crate) fn close_group(&mut self) {
        let (Some(attempt), Some(open)) = (&self.attempt, &self.open) else { return };
        if attempt.all_received() && !self.being_solved(attempt, open) {
            self.attempt = None;
            self.touch_all();
        }
    }

    /// Whether somebody who is here still solves a part of the attempt.
    fn being_solved(&self, attempt: &ReductionAttempt, open: &OpenPackage) -> bool {
        let mut parts = attempt.group.owners.iter();
        parts.any(|(part, owner)| !open.solved.contains_key(part) && self.members.contains_key(owner))
    }

    /// Whether pending shards stand in anybody's way: some part is unsolved, and nobody here has its Gram.
    pub(crate) fn sums_needed(&self, open: &OpenPackage) -> bool {
        let owner = |part| self.attempt.as_ref().and_then(|a| a.group.owners.get(part));
        open.unsolved().any(|part| owner(&part.id).is_none_or(|worker| !self.members.contains_key(worker)))
    }
}
