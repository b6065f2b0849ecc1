//! What a sweep tells: a table, CSV, JSON and a chart.

use std::fmt;

use obsdiff_engine::pipeline::Picture;
use serde::Serialize;

use super::chart::{Series, chart};
use super::{Figures, Point};
use crate::text::Table;

/// The figures of all points.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SweepReport {
    /// Those of each, in the order in which they were asked for.
    pub points: Vec<Figures>,
}

impl SweepReport {
    pub(super) fn new(points: &[Point]) -> Self {
        Self { points: points.iter().map(|point| point.figures.clone()).collect() }
    }

    /// A row a point; what is not known is empty.
    pub(super) fn csv(&self) -> String {
        let number = |number: Option<f64>| number.map_or(String::new(), |number| number.to_string());
        let mut csv = "pattern,ratio,expected_velocity_error,found_latent_error,zeros\n".to_owned();
        for one in &self.points {
            let Figures { pattern, ratio, expected_velocity_error, found_latent_error, zeros } = one;
            let known = [*expected_velocity_error, *found_latent_error, *zeros].map(number).join(",");
            csv += &format!("{pattern},{ratio},{known}\n");
        }
        csv
    }

    /// Errors against the share of zeros: of each pattern what was expected and what was found.
    pub(super) fn chart(&self) -> Picture {
        let mut patterns: Vec<String> = Vec::new();
        for one in &self.points {
            let name = one.pattern.to_string();
            if !patterns.contains(&name) {
                patterns.push(name);
            }
        }
        let mut series = Vec::new();
        for (colour, pattern) in patterns.iter().enumerate() {
            for measured in [true, false] {
                let error = |one: &Figures| {
                    if measured { one.found_latent_error } else { one.expected_velocity_error }
                };
                let of_pattern = self.points.iter().filter(|one| one.pattern.to_string() == *pattern);
                let mut points: Vec<(f64, f64)> =
                    of_pattern.filter_map(|one| Some((one.ratio, error(one)?))).collect();
                points.sort_by(|a, b| a.0.total_cmp(&b.0));
                if !points.is_empty() {
                    let what = if measured { "final latents, found" } else { "velocity, expected" };
                    series.push(Series { name: format!("{pattern} {what}"), colour, measured, points });
                }
            }
        }
        chart(&series, "share of zeros", "error relative to the dense model")
    }
}

impl fmt::Display for SweepReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = |number: Option<f64>| number.map_or("-".to_owned(), |number| format!("{number:.4}"));
        let found = self.points.iter().any(|one| one.found_latent_error.is_some());
        let mut header = vec!["pattern", "ratio", "velocity error expected"];
        header.extend(found.then_some("latent error found"));
        let mut table = Table::new(header);
        for one in &self.points {
            let mut row = vec![
                one.pattern.to_string(),
                format!("{:.1}%", 100.0 * one.ratio),
                number(one.expected_velocity_error),
            ];
            row.extend(found.then(|| number(one.found_latent_error)));
            table.row(row);
        }
        write!(f, "{table}")
    }
}
