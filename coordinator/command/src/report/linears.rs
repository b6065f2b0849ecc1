//! The full table of linears.

use maud::{Markup, html};
use obsdiff_engine::export::{PrunedLinear, PruningRecord};

use super::words::weights;
use crate::text::percent;

/// A column of numbers: its heading, and a linear's number as it is shown and as it is sorted by.
type Column = (&'static str, fn(&PrunedLinear) -> Option<(String, f64)>);

const COLUMNS: [Column; 7] = [
    ("weights", |l| Some((format!("{} x {}", l.shape[0], l.shape[1]), weights(l) as f64))),
    ("package", |l| Some(((l.package + 1).to_string(), f64::from(l.package)))),
    ("zeros", |l| Some((percent(l.zeros, weights(l)), l.zeros as f64 / weights(l).max(1) as f64))),
    ("damping", |l| l.damping.map(|d| (d.to_string(), d))),
    ("unrefined error", |l| l.unrefined_error.map(|e| (format!("{e:.5}"), e))),
    ("relative output error", |l| l.relative_error.map(|e| (format!("{e:.5}"), e))),
    ("cost", |l| l.cost.map(|c| (format!("{c:.4}"), c))),
];

/// A row for each linear, and a column for each number that any of them has.
pub(super) fn table(record: &PruningRecord) -> Markup {
    let linears = &record.linears;
    let columns: Vec<&Column> =
        COLUMNS.iter().filter(|(_, number)| linears.iter().any(|linear| number(linear).is_some())).collect();
    html! {
        div class="wide" role="region" tabindex="0" aria-label="Every pruned linear" {
            table class="sortable" {
                caption { "Every pruned linear, in model order" }
                thead { tr {
                    th scope="col" { "linear" }
                    @for (heading, _) in &columns { th scope="col" class="number" { (heading) } }
                } }
                tbody {
                    @for linear in linears {
                        tr {
                            th scope="row" data-value=(linear.name) { code { (linear.name) } }
                            @for (_, number) in &columns { (cell(number(linear))) }
                        }
                    }
                }
            }
        }
    }
}

fn cell(number: Option<(String, f64)>) -> Markup {
    html! {
        @match number {
            Some((shown, number)) => td class="number" data-value=(number) { (shown) },
            None => td class="number" { span class="unseen" { "none" } },
        }
    }
}
