//! A worker's part in a group: it joins, sums Grams with the others, and leaves.

use std::collections::BTreeSet;
use std::sync::Arc;

use obsdiff_proto::message::{Command, Exponents, Group, GroupStage, GroupStatus, Order, Part, Tally};
use obsdiff_proto::{Epoch, ShardId, SiteId};

use super::{Effect, Orders};

/// Refuses a group that expects other sums than the worker has.
const OTHER_SUMS: &str = "its sums are not those asked for";

/// Refuses a group that the worker does not belong to.
const NO_MEMBER: &str = "it is no member of this group";

impl Orders {
    pub(super) fn form(&mut self, tally: Tally, holds: &BTreeSet<ShardId>, group: Arc<Group>) -> Effect {
        let epoch = group.epoch;
        if self.status.group.as_ref().is_some_and(|g| g.epoch >= epoch) {
            return Effect::None;
        }
        self.start_tally(tally, Some(group.package), &Exponents::new());
        self.drop_group_orders(epoch);
        let sums = &self.status.sums;
        let rank = self.worker.and_then(|worker| group.members.iter().position(|m| *m == worker));
        let (stage, rank) = match rank {
            None => (GroupStage::Failed(NO_MEMBER.to_owned()), None),
            Some(_) if tally != sums.tally || *holds != sums.held || sums.spoiled => {
                (GroupStage::Failed(OTHER_SUMS.to_owned()), None)
            }
            rank => (GroupStage::Forming, rank),
        };
        self.status.group = Some(GroupStatus { epoch, stage, received: BTreeSet::new() });
        self.group = Some(group.clone());
        match rank {
            Some(rank) => {
                self.queue.push(Command::Form {
                    tally,
                    holds: Arc::new(holds.clone()),
                    group: group.clone(),
                });
                self.show_in_hand();
                Effect::Join(group, rank)
            }
            None => Effect::Leave(Epoch(epoch.0 - 1)),
        }
    }

    /// Whether a part can be solved: each Gram that it needs was received, or the group has finished and reduces no Gram of that site.
    pub(super) fn has_arrived(&self, epoch: Epoch, part: &Part) -> bool {
        let (Some(status), Some(group)) = (&self.status.group, &self.group) else { return false };
        if !self.reduces(epoch, part) {
            return false;
        }
        let not_reduced = |site| {
            status.stage == GroupStage::Reduced
                && !group.reductions.iter().any(|reduction| reduction.site == site)
        };
        let arrived = |site: &SiteId| status.received.contains(site) || not_reduced(*site);
        status.epoch == epoch && part.sites.iter().all(arrived)
    }

    /// The group is connected.
    pub(in crate::device) fn formed(&mut self, epoch: Epoch) -> bool {
        let forming = |g: &&mut GroupStatus| g.epoch == epoch && g.stage == GroupStage::Forming;
        let Some(group) = self.status.group.as_mut().filter(forming) else { return false };
        group.stage = GroupStage::Formed;
        self.finish(Order::Form { epoch });
        true
    }

    /// A group's reductions go on by themselves: the device is free to solve what has arrived.
    pub(in crate::device) fn begin_reducing(&mut self, epoch: Epoch) {
        self.reducing = Some(epoch);
        self.running = None;
    }

    /// They have ended, well or not.
    pub(in crate::device) fn end_reducing(&mut self) {
        self.reducing = None;
    }

    /// Whether the engine's sums are being read.
    pub(in crate::device) fn is_reducing(&self) -> bool {
        self.reducing.is_some()
    }

    /// A Gram arrived here.
    pub(in crate::device) fn received(&mut self, epoch: Epoch, site: SiteId) {
        if let Some(group) = self.status.group.as_mut().filter(|g| g.epoch == epoch && !g.stage.is_closed()) {
            group.received.insert(site);
        }
        self.status.progress += 1;
    }

    /// All reductions are done.
    pub(in crate::device) fn reduced(&mut self, epoch: Epoch) {
        if let Some(group) =
            self.status.group.as_mut().filter(|g| g.epoch == epoch && g.stage == GroupStage::Formed)
        {
            group.stage = GroupStage::Reduced;
        }
        self.finish(Order::Reduce { epoch });
    }

    /// The group failed; Grams that arrived stay.
    pub(in crate::device) fn fail_group(&mut self, epoch: Epoch, why: String) {
        let of_group = |order: Order| matches!(order, Order::Form { epoch: e } | Order::Reduce { epoch: e } if e == epoch);
        self.queue.retain(|c| !of_group(c.order()));
        self.running = self.running.filter(|order| !of_group(*order));
        let open = |g: &&mut GroupStatus| {
            g.epoch == epoch && matches!(g.stage, GroupStage::Forming | GroupStage::Formed)
        };
        if let Some(group) = self.status.group.as_mut().filter(open) {
            group.stage = GroupStage::Failed(why);
        }
        self.status.progress += 1;
        self.show_in_hand();
    }

    /// What a reduction needs to know: the group, and whether this worker's sums have anything to add.
    pub(in crate::device) fn reduction(&self, epoch: Epoch) -> Option<(Arc<Group>, bool, Tally)> {
        let group = self.group.clone().filter(|g| g.epoch == epoch)?;
        Some((group, !self.status.sums.held.is_empty(), self.status.sums.tally))
    }

    /// Whether the group of this epoch reduces the package that a part is solved for.
    pub(in crate::device) fn reduces(&self, epoch: Epoch, part: &Part) -> bool {
        self.group.as_ref().is_some_and(|g| g.epoch == epoch && g.package == part.id.package)
    }

    pub(super) fn abort(&mut self, epoch: Epoch) -> Effect {
        let closed =
            |g: &GroupStatus| g.epoch > epoch || (g.epoch == epoch && g.stage == GroupStage::Aborted);
        if self.status.group.as_ref().is_some_and(closed) {
            return Effect::None;
        }
        self.drop_group_orders(Epoch(epoch.0 + 1));
        self.status.group =
            Some(GroupStatus { epoch, stage: GroupStage::Aborted, received: BTreeSet::new() });
        self.group = None;
        Effect::Leave(epoch)
    }

    /// Whether the group of an epoch is closed here, or an earlier one than the last.
    pub(super) fn is_over(&self, epoch: Epoch) -> bool {
        self.status
            .group
            .as_ref()
            .is_some_and(|g| g.epoch > epoch || (g.epoch == epoch && g.stage.is_closed()))
    }

    pub(super) fn is_reduced(&self, epoch: Epoch) -> bool {
        self.status.group.as_ref().is_some_and(|g| g.epoch == epoch && g.stage == GroupStage::Reduced)
    }

    /// Drops what groups before this epoch were asked for.
    fn drop_group_orders(&mut self, before: Epoch) {
        let old = |order: Order| group_epoch(order).is_some_and(|epoch| epoch < before);
        self.queue.retain(|c| !old(c.order()));
        self.running = self.running.filter(|order| !old(*order));
        self.show_in_hand();
    }
}

/// The epoch that an order belongs to, where it needs a group.
pub(super) fn group_epoch(order: Order) -> Option<Epoch> {
    match order {
        Order::Form { epoch } | Order::Reduce { epoch } | Order::Solve { epoch, .. } => Some(epoch),
        _ => None,
    }
}
