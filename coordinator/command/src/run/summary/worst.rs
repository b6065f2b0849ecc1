//! The linears, or the heads and neurons, whose pruning did most harm.

use obsdiff_engine::export::{PrunedLinear, PruningRecord};
use obsdiff_proto::Target;

use super::weights;
use crate::text::{Table, percent};

/// How many are shown.
const SHOWN: usize = 5;

/// The worst of them, the worst first. None where no error is known.
pub(super) fn lines(record: &PruningRecord) -> Vec<String> {
    let table = if record.structures.is_empty() { linears(record) } else { structures(record) };
    table.map_or_else(Vec::new, |table| table.to_string().lines().map(str::to_owned).collect())
}

fn linears(record: &PruningRecord) -> Option<Table> {
    let of_weights = record.linears.iter().filter(|l| !matches!(l.target, Target::Structured { .. }));
    let errors: Vec<_> = of_weights.filter_map(|linear| Some((linear, linear.relative_error?))).collect();
    if errors.is_empty() {
        return None;
    }
    // What each moves the velocity is known where the cost of an error is.
    let shift = |linear: &PrunedLinear, error: f64| linear.cost.map(|cost| (cost * error).max(0.0).sqrt());
    let probed = errors.iter().any(|(linear, _)| linear.cost.is_some());
    let mut harm: Vec<_> = errors.into_iter().map(|(l, error)| (l, error, shift(l, error))).collect();
    harm.sort_by(|(_, a, shift_a), (_, b, shift_b)| {
        let [a, b] = if probed { [(shift_a, a), (shift_b, b)] } else { [(&None, a), (&None, b)] };
        b.partial_cmp(&a).unwrap_or(std::cmp::Ordering::Equal)
    });
    let title = if probed { "moving the velocity most" } else { "worst linears" };
    let mut table =
        Table::plain([title, "zeros", "error"].into_iter().chain(probed.then_some("moves it by")));
    for (linear, error, shift) in harm.into_iter().take(SHOWN) {
        let shift = probed.then(|| shift.map_or_else(String::new, |shift| format!("{shift:.4}")));
        let row = [linear.name.clone(), percent(linear.zeros, weights(linear)), format!("{error:.5}")];
        table.row(row.into_iter().chain(shift));
    }
    Some(table)
}

fn structures(record: &PruningRecord) -> Option<Table> {
    let known = record.structures.iter().filter_map(|structure| Some((structure, structure.error?)));
    let mut known: Vec<_> = known.collect();
    known.sort_by(|(_, a), (_, b)| b.total_cmp(a));
    let mut table = Table::plain(["largest errors", "kept", "error"]);
    for (structure, error) in known.iter().take(SHOWN) {
        let parts = if structure.heads { "heads" } else { "neurons" };
        let kept = format!("{} of {} {parts}", structure.kept, structure.of);
        table.row([structure.name.clone(), kept, format!("{error:.5}")]);
    }
    (!known.is_empty()).then_some(table)
}
