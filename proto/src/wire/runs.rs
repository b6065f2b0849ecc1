//! Long lists of ids that mostly follow each other, as runs.

use std::collections::BTreeSet;

use super::codec::Codec;
use super::field::count;
use super::{FieldProblem, MOST_SHARDS, Result, WireError, v1};
use crate::{Shard, ShardId};

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
