//! How many shards each worker should have: paces -> quotas. A worker gets no shard that another would finish earlier,
//! including workers that are still loading the previous package's weights.

use std::collections::BTreeSet;
use std::time::Duration;

use obsdiff_proto::WorkerId;

use crate::state::ConnectedWorker;
use crate::{Core, Options};

/// pace * speed of a shard that nobody has measured: a pace of 10^3 for a speed of 10^12, more than any device's in 10^6 operations a second,
/// so that no worker's pace is rounded to nothing beside another's.
const UNMEASURED: u64 = 1_000_000_000_000_000;

/// A worker that may take shards, now or soon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Runner {
    pub(crate) worker: WorkerId,
    /// Milliseconds that a shard takes it; at least 1.
    pub(crate) pace: u64,
    /// The pace was measured on shards, not guessed from its speed.
    pub(crate) measured: bool,
    /// Shards it has to run already.
    pub(crate) leased: usize,
    /// It can take some now.
    pub(crate) ready: bool,
}

/// How many of `unfinished` shards each worker runs if all end as early as they can: floor(T / pace) for the smallest T at which
/// that is enough. Paces are in any one unit, at least 1.
pub(crate) fn quotas(unfinished: u64, paces: &[u64]) -> Vec<u64> {
    let done_by = |t: u64| paces.iter().fold(0u64, |sum, p| sum.saturating_add(t / p));
    let (Some(&fastest), true) = (paces.iter().min(), unfinished > 0) else { return vec![0; paces.len()] };
    // The fastest alone is enough at the upper end, and nobody has finished one below the lower.
    let (mut low, mut high) = (fastest.saturating_sub(1), fastest.saturating_mul(unfinished));
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if done_by(middle) >= unfinished { high = middle } else { low = middle }
    }
    paces.iter().map(|p| high / p).collect()
}

/// How many more shards each runner that is ready should get now, in the order in which they are given out: one entry a shard. What
/// the others will take is left to them, as long as somebody who is ready has something to do.
pub(crate) fn grants(pending: usize, runners: &[Runner], options: &Options) -> Vec<WorkerId> {
    let ready: Vec<_> = runners.iter().copied().filter(|r| r.ready).collect();
    let names: BTreeSet<_> = ready.iter().map(|r| r.worker).collect();
    let mut shared = shares(pending, runners, options);
    shared.retain(|worker| names.contains(worker));
    if shared.is_empty() && ready.iter().all(|r| r.leased == 0) {
        shares(pending, &ready, options)
    } else {
        shared
    }
}

/// How many more shards each runner should get so that all of them end as early as they can.
fn shares(pending: usize, runners: &[Runner], options: &Options) -> Vec<WorkerId> {
    let unfinished = pending + runners.iter().map(|r| r.leased).sum::<usize>();
    let paces: Vec<_> = runners.iter().map(|r| r.pace).collect();
    let mut queue = BTreeSet::new();
    for (runner, quota) in runners.iter().zip(quotas(unfinished as u64, &paces)) {
        let most = u64::from(depth(runner, options)).min(quota) as usize;
        for leased in runner.leased..most {
            queue.insert((runner.pace.saturating_mul(leased as u64 + 1), runner.worker));
        }
    }
    queue.into_iter().take(pending).map(|(_, worker)| worker).collect()
}

/// Shards a worker has at a time: the running one, a next one, and more as they are known to be short.
fn depth(runner: &Runner, options: &Options) -> u32 {
    let pace = if runner.measured { runner.pace } else { u64::MAX };
    let ahead = u64::try_from(options.ahead.as_millis()).unwrap_or(u64::MAX).div_ceil(pace.max(1));
    u32::try_from(ahead.max(1)).unwrap_or(u32::MAX).saturating_add(1).min(options.most_leases.max(1))
}

impl Core {
    /// Workers that can take shards of the open package now, and those who were there for the last one and will soon.
    pub(crate) fn runners(&self) -> Vec<Runner> {
        let Some(open) = &self.open else { return Vec::new() };
        let unit = self.shard_unit();
        let runner = |(worker, member): (&WorkerId, &ConnectedWorker)| Runner {
            worker: *worker,
            pace: member.pace.map_or_else(|| guessed(unit, member.speed), |pace| millis(pace).max(1)),
            measured: member.pace.is_some(),
            leased: open.ledger.leased(*worker).len(),
            ready: member.applied == self.committed,
        };
        let soon =
            |m: &ConnectedWorker| !m.preparing && m.applied + 1 >= self.committed && m.draining.is_none();
        self.members.iter().filter(|(_, m)| soon(m)).map(runner).collect()
    }

    /// pace * speed of a shard, the mean of those who measured theirs; before that a guess of which the ratios of paces alone matter.
    fn shard_unit(&self) -> u64 {
        let measured = self.members.values().filter_map(|m| Some(millis(m.pace?).saturating_mul(m.speed)));
        let (sum, count) =
            measured.fold((0u128, 0u128), |(sum, count), unit| (sum + u128::from(unit), count + 1));
        sum.checked_div(count).map_or(UNMEASURED, |mean| u64::try_from(mean).unwrap_or(u64::MAX))
    }
}

/// The pace of a worker of this speed where a shard takes so much.
const fn guessed(unit: u64, speed: u64) -> u64 {
    let speed = if speed == 0 { 1 } else { speed };
    let pace = unit / speed;
    if pace == 0 { 1 } else { pace }
}

fn millis(d: Duration) -> u64 {
    u64::try_from(d.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn quotas_are_enough_and_no_shorter_time_is(
            unfinished in 1u64..500,
            paces in prop::collection::vec(1u64..10_000, 1..12),
        ) {
            let quotas = quotas(unfinished, &paces);
            prop_assert!(quotas.iter().sum::<u64>() >= unfinished);
            let end = quotas.iter().zip(&paces).map(|(q, p)| q * p).max().unwrap();
            prop_assert!(paces.iter().map(|p| (end - 1) / p).sum::<u64>() < unfinished);
        }

        #[test]
        fn something_is_granted_while_anybody_idles_and_all_may_be_granted(
            pending in 1usize..50,
            paces in prop::collection::vec(1u64..100_000, 1..10),
        ) {
            let options = Options::default();
            let mut runners: Vec<_> = (0u64..).zip(&paces).map(|(i, &pace)| Runner { worker: WorkerId(i), pace, measured: true, leased: 0, ready: true }).collect();
            let mut left = pending;
            // Everybody finishes what it has, again and again: the shards run out.
            for _ in 0..pending {
                let grants = grants(left, &runners, &options);
                prop_assert!(left == 0 || !grants.is_empty());
                left -= grants.len();
                runners.iter_mut().for_each(|r| r.leased = 0);
            }
            prop_assert_eq!(left, 0);
        }
    }

    #[test]
    fn a_slow_worker_gets_fewer_and_none_at_the_end() {
        let runner = |id, pace| Runner { worker: WorkerId(id), pace, measured: true, leased: 0, ready: true };
        let runners = [runner(0, 1_000), runner(1, 40_000)];
        let count = |grants: &[WorkerId], id| grants.iter().filter(|w| w.0 == id).count();
        let many = grants(1000, &runners, &Options::default());
        assert_eq!((count(&many, 0), count(&many, 1)), (4, 2));
        let few = grants(3, &runners, &Options::default());
        assert_eq!((count(&few, 0), count(&few, 1)), (3, 0));
        let guessed = Runner { measured: false, ..runner(0, 1_000) };
        assert_eq!(grants(1000, &[guessed], &Options::default()).len(), 2);
    }

    #[test]
    fn a_processor_beside_a_gpu_gets_no_shard_before_their_paces_are_known() {
        // 0.1 and 800 TFLOP a second.
        let [processor, gpu] = [100_000, 800_000_000].map(|speed| guessed(UNMEASURED, speed));
        assert_eq!(processor / gpu, 8000);
        let runner =
            |id, pace| Runner { worker: WorkerId(id), pace, measured: false, leased: 0, ready: true };
        let granted = grants(1000, &[runner(0, processor), runner(1, gpu)], &Options::default());
        assert_eq!(granted, [WorkerId(1), WorkerId(1)]);
        assert_eq!((guessed(UNMEASURED, 0), guessed(5, 9)), (UNMEASURED, 1));
    }

    #[test]
    fn the_first_worker_leaves_the_others_their_share() {
        let first = Runner { worker: WorkerId(0), pace: 600, measured: true, leased: 0, ready: true };
        let later = Runner { worker: WorkerId(1), ready: false, ..first };
        let options = Options::default();
        assert_eq!(grants(4, &[first, later], &options), [WorkerId(0), WorkerId(0)]);
        let busy = Runner { leased: 2, ..first };
        assert_eq!(grants(2, &[busy, later], &options), []);
        assert_eq!(grants(2, &[busy, Runner { ready: true, ..later }], &options), [WorkerId(1), WorkerId(1)]);
        // Nobody waits for a worker that may never come.
        let slow = Runner { pace: 700, ..first };
        assert_eq!(grants(1, &[slow, later], &options), [WorkerId(0)]);
    }
}
