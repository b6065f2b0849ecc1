//! The error along the denoising steps, as a chart with its numbers as text.

use maud::{Markup, html};

/// Size of the chart in its own units, and of its margins for the axes.
const SIZE: [f64; 2] = [720.0, 280.0];
const LEFT: f64 = 58.0;
const RIGHT: f64 = 14.0;
const TOP: f64 = 14.0;
const BOTTOM: f64 = 46.0;

/// Most marks on an axis.
const MARKS: usize = 6;

/// The chart of these errors, after step 1, 2 and so on.
pub(super) fn chart(errors: &[f64]) -> Markup {
    let most = errors.iter().copied().filter(|error| error.is_finite()).fold(0.0, f64::max);
    let (step, top) = scale(most);
    let across = |i: usize| {
        let share = if errors.len() > 1 { i as f64 / (errors.len() - 1) as f64 } else { 0.5 };
        LEFT + share * (SIZE[0] - LEFT - RIGHT)
    };
    let up = |error: f64| SIZE[1] - BOTTOM - error / top * (SIZE[1] - TOP - BOTTOM);
    let points: Vec<(f64, f64)> = errors.iter().enumerate().map(|(i, e)| (across(i), up(*e))).collect();
    let line = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect::<Vec<_>>().join(" ");
    let every = errors.len().div_ceil(2 * MARKS).max(1);
    let words = in_words(errors);
    html! {
        svg class="chart" viewBox=(format!("0 0 {} {}", SIZE[0], SIZE[1])) role="img"
            aria-labelledby="steps-title steps-words" {
            title id="steps-title" { "Relative error of the latents after each denoising step" }
            desc id="steps-words" { (words) }
            @for mark in 0..=(top / step).round() as usize {
                @let error = mark as f64 * step;
                line class="grid" x1=(LEFT) x2=(SIZE[0] - RIGHT) y1=(format!("{:.1}", up(error))) y2=(format!("{:.1}", up(error))) {}
                text class="mark" x=(LEFT - 8.0) y=(format!("{:.1}", up(error) + 4.0)) text-anchor="end" { (short(error)) }
            }
            @for (i, (x, _)) in points.iter().enumerate() {
                @if i % every == 0 || i + 1 == points.len() && points.len() % every > every / 2 {
                    text class="mark" x=(format!("{x:.1}")) y=(SIZE[1] - BOTTOM + 20.0) text-anchor="middle" { (i + 1) }
                }
            }
            text class="mark" x=(LEFT + (SIZE[0] - LEFT - RIGHT) / 2.0) y=(SIZE[1] - 6.0) text-anchor="middle" {
                "denoising step, from the noisiest on"
            }
            polyline class="line" points=(line) {}
            @for ((x, y), (i, error)) in points.iter().zip(errors.iter().enumerate()) {
                circle class="dot" cx=(format!("{x:.1}")) cy=(format!("{y:.1}")) r="3.5" {
                    title { "after step " (i + 1) ": " (format!("{error:.4}")) }
                }
            }
        }
        details {
            summary { "The same as numbers" }
            ol class="numbers" {
                @for error in errors { li { (format!("{error:.4}")) } }
            }
        }
    }
}

/// What the chart shows, as a sentence.
fn in_words(errors: &[f64]) -> String {
    let [Some(first), Some(last)] = [errors.first(), errors.last()] else { return String::new() };
    format!("From {first:.4} after step 1 to {last:.4} after step {}.", errors.len())
}

/// A round distance of marks, and the largest of them, which is at least `most`.
fn scale(most: f64) -> (f64, f64) {
    if most <= 0.0 {
        return (1.0, 1.0);
    }
    let rough = most / (MARKS - 1) as f64;
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].map(|round| round * power).into_iter().find(|step| *step >= rough);
    let step = step.unwrap_or(10.0 * power);
    (step, (most / step).ceil().max(1.0) * step)
}

/// A number without the zeros at its end.
fn short(number: f64) -> String {
    let text = format!("{number:.6}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_round_and_reach_the_largest_error() {
        for (most, expected) in [(0.047, (0.01, 0.05)), (0.9, (0.2, 1.0)), (13.0, (5.0, 15.0))] {
            let (step, top) = scale(most);
            assert!(
                (step - expected.0).abs() < 1e-9 && (top - expected.1).abs() < 1e-9,
                "{most}: {step}, {top}"
            );
        }
        assert_eq!((scale(0.0), short(0.25), short(10.0)), ((1.0, 1.0), "0.25".into(), "10".into()));
    }

    #[test]
    fn a_chart_says_in_words_what_it_shows() {
        let chart = chart(&[0.01, 0.02, 0.035]).into_string();
        assert!(chart.contains("From 0.0100 after step 1 to 0.0350 after step 3."), "{chart}");
        assert!(chart.matches("<circle").count() == 3 && chart.contains("<li>0.0350</li>"), "{chart}");
        assert!(!chart.contains("NaN") && !super::chart(&[0.0]).into_string().contains("NaN"));
    }
}
