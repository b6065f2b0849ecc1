//! What each worker should be doing, derived from the facts. Nothing else decides what is sent.

use obsdiff_proto::WorkerId;

use crate::state::ConnectedWorker;
use crate::{Core, Order};

impl Core {
    /// Orders that `worker` has not shown to be done, in the order in which they are sent. Empty for one that left.
    pub(crate) fn orders(&self, worker: WorkerId) -> Vec<Order> {
        let Some(member) = self.members.get(&worker) else { return Vec::new() };
        let mut orders = Vec::new();
        if member.preparing {
            if self.encodes(worker, member) {
                orders.push(Order::Encode);
            }
            return orders;
        }
        if member.closed < member.abort {
            orders.push(Order::Abort { epoch: member.abort });
        }
        if member.applied < self.committed {
            orders.push(Order::Apply { packages: self.committed });
            return orders;
        }
        if self.pilot == Some(worker) && self.exponents.is_none() {
            orders.push(Order::Pilot);
        }
        if self.exporter == Some(worker) {
            orders.push(Order::Export);
        }
        if member.stale_sums {
            orders.push(Order::Discard { tally: member.tally });
        }
        self.shard_orders(worker, member, &mut orders);
        self.group_orders(worker, &mut orders);
        orders
    }

    fn shard_orders(&self, worker: WorkerId, member: &ConnectedWorker, orders: &mut Vec<Order>) {
        let Some(open) = &self.open else { return };
        let leased = open.ledger.leased(worker);
        let tally = member.tally;
        let restoring = open.ledger.restoring(worker).iter();
        orders.extend(restoring.map(|saved| Order::Restore { tally, first: saved.first() }));
        orders.extend(leased.map(|shard| Order::Calibrate { tally, shard }));
    }

    fn group_orders(&self, worker: WorkerId, orders: &mut Vec<Order>) {
        let (Some(open), Some(attempt)) = (&self.open, &self.attempt) else { return };
        let group = &attempt.group;
        if group.members.binary_search(&worker).is_err() {
            return;
        }
        if !attempt.reducing {
            if !attempt.formed.contains(&worker) {
                orders.push(Order::Form { epoch: group.epoch });
            }
            return;
        }
        if !attempt.through.contains(&worker) {
            orders.push(Order::Reduce { epoch: group.epoch });
        }
        let own =
            group.owners.iter().filter(|(part, owner)| **owner == worker && !open.solved.contains_key(part));
        orders.extend(own.map(|(part, _)| Order::Solve { epoch: group.epoch, part: *part }));
    }
}
