//! Splitting a row of units into consecutive runs. A split is the list of the runs' ends.

use std::ops::Range;

/// `count` runs of an even number of units, the first ones one more. `count` is at least 1 and at most `units`.
pub(super) fn even(units: usize, count: usize) -> Vec<usize> {
    let (size, extra) = (units / count, units % count);
    (1..=count).map(|run| run * size + run.min(extra)).collect()
}

/// The fewest runs that each hold at most `limit`, where no unit alone exceeds it: each run takes all it can.
pub(super) fn fewest(sizes: &[u64], limit: u64) -> usize {
    let mut runs = 1;
    let mut held = 0u64;
    for size in sizes {
        held = held.saturating_add(*size);
        if held > limit {
            runs += 1;
            held = *size;
        }
    }
    runs
}

/// `count` runs that all `fit`, with the least work in the run that has most; among such splits, the one whose runs' work has the
/// least sum of squares. None where no split into `count` runs fits.
pub(super) fn balanced(
    work: &[f64],
    count: usize,
    fits: impl Fn(Range<usize>) -> bool,
) -> Option<Vec<usize>> {
    let mut sums = vec![0.0];
    for unit in work {
        sums.push(sums.last().copied().unwrap_or(0.0) + unit);
    }
    let load = |run: &Range<usize>| sums[run.end] - sums[run.start];
    let (most, _) = least(work.len(), count, |run| fits(run.clone()).then(|| load(&run)), f64::max)?;
    let square = |run: Range<usize>| (fits(run.clone()) && load(&run) <= most).then(|| load(&run).powi(2));
    least(work.len(), count, square, |a, b| a + b).map(|(_, ends)| ends)
}

/// The split of `units` into `count` runs, none empty, whose costs joined from left to right are least; ties go to the earlier end.
/// A run without a cost is not allowed. Takes count * units^2 steps, of a few hundred units at most.
fn least(
    units: usize,
    count: usize,
    cost: impl Fn(Range<usize>) -> Option<f64>,
    join: impl Fn(f64, f64) -> f64,
) -> Option<(f64, Vec<usize>)> {
    // best[end] = (joined cost of the runs so far, which end at `end`; where the last of them starts)
    let mut tables: Vec<Vec<Option<(f64, usize)>>> = Vec::with_capacity(count);
    for run in 0..count {
        let table = (0..=units).map(|end| {
            let candidates = (run..end).filter_map(|start| {
                let before = match tables.last() {
                    Some(previous) => previous[start].map(|(cost, _)| cost)?,
                    None if start == 0 => 0.0,
                    None => return None,
                };
                Some((join(before, cost(start..end)?), start))
            });
            candidates.reduce(|best, next| if next.0 < best.0 { next } else { best })
        });
        let table = table.collect();
        tables.push(table);
    }
    let total = tables.last()?.last().copied().flatten()?.0;
    let mut ends = vec![units];
    for table in tables.iter().skip(1).rev() {
        let end = ends.last().copied()?;
        ends.push(table[end]?.1);
    }
    ends.reverse();
    Some((total, ends))
}
