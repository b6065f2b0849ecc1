//! Long lists of ids that mostly follow each other, as runs.

use std::collections::BTreeSet;

use super::codec::Codec;
use super::field::count;
use super::v1::order::{Calibrate, Order, Restore};
use super::v1::worker_event::Event;
use super::{FieldProblem, MOST_SHARDS, Result, WireError, v1};
use crate::session::{PROTOCOL, WorkerEvent};
use crate::{Shard, ShardId, counted};

/// A set of shards as runs: alternately the number of ids left out, and the number of consecutive ids.
pub(super) struct Runs;

impl Codec<BTreeSet<ShardId>, Vec<u32>> for Runs {
    fn write(&self, value: &BTreeSet<ShardId>) -> Vec<u32> {
        runs_out(value)
    }

    fn read(&self, field: &str, wire: Vec<u32>) -> Result<BTreeSet<ShardId>> {
        runs(field, &wire)
    }
}

fn runs_out(shards: &BTreeSet<ShardId>) -> Vec<u32> {
    let mut runs = Vec::new();
    // What the next id would be in the run that is open.
    let mut next = 0;
    for &ShardId(id) in shards {
        match runs.last_mut() {
            Some(length) if id == next => *length += 1,
            _ => runs.extend([id - next, 1]),
        }
        next = id.saturating_add(1);
    }
    runs
}

fn runs(field: &str, runs: &[u32]) -> Result<BTreeSet<ShardId>> {
    let (runs, []) = runs.as_chunks::<2>() else {
        return Err(WireError::new(field, FieldProblem::Content("has a run without a length".to_owned())));
    };
    let held = runs.iter().fold(0_usize, |sum, [_, length]| sum.saturating_add(*length as usize));
    count(field, held, MOST_SHARDS)?;
    let mut shards = BTreeSet::new();
    let mut next = 0_u32;
    for (at, [gap, length]) in runs.iter().enumerate() {
        if *length == 0 || (*gap == 0 && at > 0) {
            return Err(WireError::new(field, FieldProblem::Unordered));
        }
        let start = next.checked_add(*gap);
        let end = start.and_then(|start| start.checked_add(*length));
        let (Some(start), Some(end)) = (start, end) else {
            return Err(WireError::new(
                field,
                FieldProblem::Content("names shards that cannot be".to_owned()),
            ));
        };
        shards.extend((start..end).map(ShardId));
        next = end;
    }
    Ok(shards)
}

impl v1::WorkerEvent {
    /// What a worker says in a job of so many shards. A message that names other shards is refused before its runs become sets: a few
    /// bytes can name a million shards.
    ///
    /// # Errors
    /// When the worker speaks another protocol, or a field has a value that is not allowed.
    pub fn into_event(self, shards: usize) -> Result<WorkerEvent> {
        let status = match &self.event {
            // Another protocol is the reason that its worker is told, whatever else it says.
            Some(Event::Hello(hello)) if hello.protocol == PROTOCOL => {
                hello.status.as_ref().map(|status| ("hello.status", status))
            }
            Some(Event::Status(status)) => Some(("status", status)),
            _ => None,
        };
        if let Some((field, status)) = status {
            check_shards(status, shards).map_err(|e| e.within(field))?;
        }
        WorkerEvent::try_from(self)
    }
}

/// Refuses a status that names a shard which a plan of so many shards does not have.
fn check_shards(status: &v1::Status, shards: usize) -> Result<()> {
    let unknown = |field: &str, shard: u64| {
        let problem = format!("names shard {shard}, but the plan has {}", counted(shards, "shard"));
        Err(WireError::new(field, FieldProblem::Content(problem)))
    };
    let held = status.sums.iter().map(|sums| ("sums.held_runs", &sums.held_runs));
    let saved = status.sums.iter().filter_map(|sums| sums.saved.as_ref());
    for (field, runs) in held.chain(saved.map(|saved| ("sums.saved.shards_runs", &saved.shards_runs))) {
        // The last run ends where all ids that are left out and all that are named add up to.
        let end: u64 = runs.iter().map(|ids| u64::from(*ids)).sum();
        if end > shards as u64 {
            return unknown(field, end - 1);
        }
    }
    for (at, order) in status.in_hand.iter().enumerate() {
        let (named, shard) = match &order.order {
            Some(Order::Calibrate(Calibrate { shard, .. })) => ("calibrate.shard", *shard),
            Some(Order::Restore(Restore { first, .. })) => ("restore.first", *first),
            _ => continue,
        };
        if shard as usize >= shards {
            return unknown(&format!("in_hand[{at}].{named}"), shard.into());
        }
    }
    Ok(())
}

/// A plan's shards as runs of equal ones that follow each other. Their ids are their places.
pub(super) fn shards_out(shards: &[Shard]) -> Vec<v1::ShardRun> {
    let mut runs: Vec<v1::ShardRun> = Vec::new();
    let mut next = 0;
    for shard in shards {
        let prompts = shard.prompts.end.saturating_sub(shard.prompts.start);
        match runs.last_mut() {
            Some(run) if shard.prompts.start == next && prompts == run.prompts => run.count += 1,
            _ => runs.push(v1::ShardRun { first: shard.prompts.start, prompts, count: 1 }),
        }
        next = shard.prompts.end;
    }
    runs
}

/// A plan's shards from their runs.
pub(super) fn shards(field: &str, runs: &[v1::ShardRun]) -> Result<Vec<Shard>> {
    let found = runs.iter().fold(0_usize, |sum, run| sum.saturating_add(run.count as usize));
    count(field, found, MOST_SHARDS)?;
    let wrong = |at: usize, what: &str| {
        WireError::new(&format!("{field}[{at}]"), FieldProblem::Content(what.to_owned()))
    };
    let mut shards = Vec::with_capacity(found);
    for (at, run) in runs.iter().enumerate() {
        if run.prompts == 0 || run.count == 0 {
            return Err(wrong(at, "has no prompts"));
        }
        let all = run.prompts.checked_mul(run.count).and_then(|all| run.first.checked_add(all));
        if all.is_none() {
            return Err(wrong(at, "names prompts that cannot be"));
        }
        for index in 0..run.count {
            let start = run.first + index * run.prompts;
            shards.push(Shard { id: ShardId(shards.len() as u32), prompts: start..start + run.prompts });
        }
    }
    Ok(shards)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Status;

    fn set(ids: &[u32]) -> BTreeSet<ShardId> {
        ids.iter().copied().map(ShardId).collect()
    }

    #[test]
    fn a_set_becomes_its_runs_and_comes_back() {
        let sets: [(&[u32], &[u32]); 4] = [
            (&[], &[]),
            (&[0, 1, 2], &[0, 3]),
            (&[3, 4, 9], &[3, 2, 4, 1]),
            (&[u32::MAX - 1], &[u32::MAX - 1, 1]),
        ];
        for (ids, expected) in sets {
            assert_eq!(runs_out(&set(ids)), expected);
            assert_eq!(runs("held", expected), Ok(set(ids)));
        }
    }

    #[test]
    fn runs_that_cannot_be_are_refused() {
        let problem = |given: &[u32]| runs("held", given).unwrap_err().to_string();
        assert_eq!(problem(&[0, 0]), "held: is not ascending");
        assert_eq!(problem(&[0, 1, 0, 1]), "held: is not ascending");
        assert_eq!(problem(&[4]), "held: has a run without a length");
        assert_eq!(problem(&[u32::MAX, 1]), "held: names shards that cannot be");
        assert!(problem(&[0, u32::MAX]).starts_with("held: has 4294967295 entries, but at most 1048576"));
    }

    #[test]
    fn a_message_that_names_other_shards_than_the_plans_is_refused() {
        let status = |held_runs: &[u32], in_hand: &[u32]| {
            let order = |shard: &u32| Order::Calibrate(Calibrate { tally: 1, shard: *shard });
            v1::Status {
                sums: Some(v1::Sums { held_runs: held_runs.to_vec(), ..v1::Sums::default() }),
                in_hand: in_hand.iter().map(|shard| v1::Order { order: Some(order(shard)) }).collect(),
                ..v1::Status::from(&Status::default())
            }
        };
        let read = |event| v1::WorkerEvent { event: Some(event) }.into_event(4);
        let Ok(WorkerEvent::Status(known)) = read(Event::Status(status(&[1, 3], &[0, 3]))) else {
            panic!("the plan's own shards are refused");
        };
        assert_eq!((known.sums.held, known.in_hand.len()), (set(&[1, 2, 3]), 2));

        let problem = |event| read(event).unwrap_err().to_string();
        assert_eq!(
            problem(Event::Status(status(&[0, 1 << 20], &[]))),
            "status.sums.held_runs: names shard 1048575, but the plan has 4 shards"
        );
        assert_eq!(
            problem(Event::Status(status(&[0, 1, 3, 1], &[]))),
            "status.sums.held_runs: names shard 4, but the plan has 4 shards"
        );
        assert_eq!(
            problem(Event::Status(status(&[], &[3, 4]))),
            "status.in_hand[1].calibrate.shard: names shard 4, but the plan has 4 shards"
        );
        let mut saves = status(&[0, 1], &[]);
        let sums = saves.sums.get_or_insert_default();
        sums.saved = Some(v1::SavedSums { shards_runs: vec![3, 2], ..v1::SavedSums::default() });
        assert_eq!(
            problem(Event::Status(saves)),
            "status.sums.saved.shards_runs: names shard 4, but the plan has 4 shards"
        );
        let mut restores = status(&[], &[]);
        let order = Some(Order::Restore(Restore { tally: 1, first: 4 }));
        restores.in_hand = vec![v1::Order { order }];
        assert_eq!(
            problem(Event::Status(restores)),
            "status.in_hand[0].restore.first: names shard 4, but the plan has 4 shards"
        );
        let status = status(&[0, 5], &[]);
        let hello = |protocol| {
            Event::Hello(v1::Hello { protocol, status: Some(status.clone()), ..v1::Hello::default() })
        };
        assert_eq!(
            problem(hello(PROTOCOL)),
            "hello.status.sums.held_runs: names shard 4, but the plan has 4 shards"
        );
        let other = problem(hello(PROTOCOL + 1));
        assert!(other.ends_with("use the same release on both"), "{other}");
    }

    #[test]
    fn shards_of_all_sizes_come_back() {
        let shard = |id: u32, start, end| Shard { id: ShardId(id), prompts: start..end };
        let all = [shard(0, 0, 4), shard(1, 4, 8), shard(2, 8, 9), shard(3, 20, 21)];
        let sent = shards_out(&all);
        assert_eq!(
            sent.iter().map(|run| (run.first, run.count)).collect::<Vec<_>>(),
            [(0, 2), (8, 1), (20, 1)]
        );
        assert_eq!(shards("shards", &sent), Ok(all.to_vec()));
        let wrong = |run| shards("shards", &[run]).unwrap_err().to_string();
        assert_eq!(wrong(v1::ShardRun { first: 0, prompts: 0, count: 1 }), "shards[0]: has no prompts");
        let far = v1::ShardRun { first: u32::MAX, prompts: 4, count: 1 };
        assert_eq!(wrong(far), "shards[0]: names prompts that cannot be");
    }
}
