//! Numbers of linears by block and place in it, as tables whose cells are coloured by their numbers.

use std::collections::{BTreeMap, BTreeSet};

use maud::{Markup, html};
use obsdiff_engine::export::{PrunedLinear, PruningRecord};

use super::words::{capital, place, weights};

/// Steps of the colour scale.
const LEVELS: usize = 9;

/// Numbers further apart than this are coloured by their logarithms.
const WIDE: f64 = 30.0;

/// A number of each linear.
struct Measure {
    name: &'static str,
    says: &'static str,
    of: fn(&PrunedLinear) -> Option<f64>,
    show: fn(f64) -> String,
}

/// What is shown of each linear.
const MEASURES: [Measure; 4] = [
    Measure {
        name: "Sparsity",
        says: "per cent of the weights that are zero or gone",
        of: |linear| Some(100.0 * linear.zeros as f64 / weights(linear).max(1) as f64),
        show: |number| format!("{number:.0}"),
    },
    Measure {
        name: "Relative output error",
        says: "of the linear's output on the calibration prompts, squared: tr(dW S dWᵀ) / tr(W S Wᵀ)",
        of: |linear| linear.relative_error,
        show: small,
    },
    Measure {
        name: "Damping",
        says: "the share of the mean diagonal that was added to the Hessian's diagonal",
        of: |linear| linear.damping,
        show: |number| number.to_string(),
    },
    Measure {
        name: "Cost",
        says: "how much an error of the linear moves the model's velocity",
        of: |linear| linear.cost,
        show: small,
    },
];

/// A number in few characters.
fn small(number: f64) -> String {
    match number {
        0.0 => "0".to_owned(),
        n if n < 1e-3 => format!("{n:.0e}"),
        n if n < 1.0 => format!("{n:.3}").trim_start_matches('0').to_owned(),
        n if n < 100.0 => format!("{n:.1}"),
        n => format!("{n:.0}"),
    }
}

/// How numbers become colours.
struct Colours {
    low: f64,
    high: f64,
    logarithms: bool,
}

impl Colours {
    fn of(numbers: &[f64]) -> Option<Self> {
        let positive = || numbers.iter().copied().filter(|n| *n > 0.0);
        let high = numbers.iter().copied().reduce(f64::max)?;
        let (low, least) = (numbers.iter().copied().reduce(f64::min)?, positive().reduce(f64::min)?);
        let logarithms = high > WIDE * least;
        Some(Self { low: if logarithms { least } else { low }, high, logarithms })
    }

    /// Whether the numbers differ by so little that colours would mislead.
    fn are_equal(&self) -> bool {
        self.high - self.low <= 0.01 * self.high
    }

    /// 0 for the lowest number to `LEVELS - 1` for the highest; the middle where all are equal.
    fn level(&self, number: f64) -> usize {
        let place = |n: f64| if self.logarithms { n.max(self.low).ln() } else { n };
        let range = place(self.high) - place(self.low);
        let share = if range > 0.0 { (place(number) - place(self.low)) / range } else { 0.5 };
        ((share * LEVELS as f64) as usize).min(LEVELS - 1)
    }
}

/// One table for each measure and list of blocks. A measure that is the same in all linears is given in a sentence.
pub(super) fn maps(record: &PruningRecord) -> Markup {
    html! {
        @for measure in &MEASURES {
            @let numbers: Vec<f64> = record.linears.iter().filter_map(measure.of).collect();
            @if let Some(colours) = Colours::of(&numbers) {
                h3 { (measure.name) }
                @if colours.are_equal() {
                    p {
                        (capital(measure.says)) ": " (shown(measure, colours.high)) " in every linear"
                        @if numbers.len() < record.linears.len() { " that has one" } "."
                    }
                } @else {
                    p { (capital(measure.says)) ". " (legend(&colours, measure)) }
                    @for (list, linears) in lists(record) { (map(list, &linears, measure, &colours)) }
                }
            }
        }
    }
}

fn legend(colours: &Colours, measure: &Measure) -> Markup {
    html! {
        span class="legend" {
            (shown(measure, colours.low)) " "
            @for level in 0..LEVELS { span class=(format!("swatch h{level}")) aria-hidden="true" {} }
            " " (shown(measure, colours.high))
            @if colours.logarithms { ", by logarithms" }
        }
    }
}

fn shown(measure: &Measure, number: f64) -> String {
    (measure.show)(number)
}

/// The linears of each list of blocks, in model order.
fn lists(record: &PruningRecord) -> Vec<(&str, Vec<&PrunedLinear>)> {
    let mut lists: Vec<(&str, Vec<&PrunedLinear>)> = Vec::new();
    for linear in &record.linears {
        let (list, ..) = place(&linear.name);
        match lists.iter_mut().find(|(name, _)| *name == list) {
            Some((_, linears)) => linears.push(linear),
            None => lists.push((list, vec![linear])),
        }
    }
    lists
}

fn map(list: &str, linears: &[&PrunedLinear], measure: &Measure, colours: &Colours) -> Markup {
    let mut columns: Vec<&str> = Vec::new();
    let mut blocks: BTreeSet<(usize, &str)> = BTreeSet::new();
    let mut cells: BTreeMap<(&str, &str), &PrunedLinear> = BTreeMap::new();
    for linear in linears {
        let (_, block, name) = place(&linear.name);
        blocks.insert((block.parse().unwrap_or(0), block));
        if !columns.contains(&name) && (measure.of)(linear).is_some() {
            columns.push(name);
        }
        cells.insert((block, name), linear);
    }
    let caption = format!("{} in {list}, by block and linear", measure.name);
    html! {
        div class="wide" role="region" tabindex="0" aria-label=(caption) {
            table class="heat" {
                caption { (measure.name) " in " code { (list) } }
                thead { tr {
                    th scope="col" { "block" }
                    @for column in &columns { th scope="col" class="turned" { span { (column) } } }
                } }
                tbody {
                    @for (_, block) in &blocks {
                        tr {
                            th scope="row" { (block) }
                            @for column in &columns { (cell(cells.get(&(*block, *column)), measure, colours)) }
                        }
                    }
                }
            }
        }
    }
}

fn cell(linear: Option<&&PrunedLinear>, measure: &Measure, colours: &Colours) -> Markup {
    let number = linear.and_then(|linear| Some((linear, (measure.of)(linear)?)));
    html! {
        @match number {
            Some((linear, number)) => {
                td class=(format!("h{}", colours.level(number))) title=(format!("{}: {number}", linear.name)) {
                    (shown(measure, number))
                }
            },
            None => td class="none" { span class="unseen" { "none" } },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_span_what_is_there() {
        let even = Colours::of(&[10.0, 20.0, 30.0]).unwrap();
        assert_eq!([10.0, 20.0, 30.0].map(|n| even.level(n)), [0, 4, 8]);
        let wide = Colours::of(&[0.0, 0.01, 1.0, 100.0]).unwrap();
        assert!(wide.logarithms);
        assert_eq!([0.0, 0.01, 1.0, 100.0].map(|n| wide.level(n)), [0, 0, 4, 8]);
        assert_eq!(Colours::of(&[0.5, 0.5]).unwrap().level(0.5), 4);
        assert!(Colours::of(&[]).is_none() && Colours::of(&[0.0]).is_none());
    }

    #[test]
    fn numbers_are_short() {
        let shown = [0.0, 0.000_12, 0.0123, 0.5, 3.21, 1234.0].map(small);
        assert_eq!(shown, ["0", "1e-4", ".012", ".500", "3.2", "1234"]);
    }
}
