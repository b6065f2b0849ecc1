//! What a sweep reports: a table, CSV, JSON and a chart.

use std::collections::BTreeSet;
use std::fmt;

use obsdiff_engine::pipeline::Picture;
use serde::Serialize;

use super::chart::{Series, chart, ticks_of_shares};
use super::{Figures, Point};
use crate::text::Table;

/// The figures of all points.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SweepReport {
    /// Those of each, in the order in which they were asked for.
    pub points: Vec<Figures>,
    /// The hardware on which they were solved and measured; absent where they were not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hardware: Option<String>,
}

impl SweepReport {
    pub(super) fn new(points: &[Point], hardware: Option<String>) -> Self {
        Self { points: points.iter().map(|point| point.figures.clone()).collect(), hardware }
    }

    /// A row a point; what is not known is empty.
    pub(super) fn csv(&self) -> String {
        let number = |number: Option<f64>| number.map_or(String::new(), |number| number.to_string());
        let mut csv = "pattern,ratio,prompts,expected_velocity_error,found_latent_error,zeros\n".to_owned();
        for one in &self.points {
            let Figures { pattern, ratio, prompts, expected_velocity_error, found_latent_error, zeros } = one;
            let known = [*expected_velocity_error, *found_latent_error, *zeros].map(number).join(",");
            csv += &format!("{pattern},{ratio},{prompts},{known}\n");
        }
        csv
    }

    /// The numbers of prompts, ascending.
    fn counts(&self) -> BTreeSet<u32> {
        self.points.iter().map(|one| one.prompts).collect()
    }

    /// Errors against the share of zeros, or against prompts where points differ in these: what was expected and what was found.
    pub(super) fn chart(&self) -> Picture {
        let up = "error relative to the dense model";
        let counts = self.counts();
        if counts.len() < 2 {
            let series = self.series(&|one| one.pattern.to_string(), &|one| one.ratio);
            return chart(&series, &ticks_of_shares(&series), "share of zeros", up);
        }
        // Each doubling takes the same width.
        let place = |prompts: u32| f64::from(prompts).log2();
        let name = |one: &Figures| format!("{} {:.0}%", one.pattern, 100.0 * one.ratio);
        let series = self.series(&name, &|one| place(one.prompts));
        let ticks = counts.into_iter().map(|prompts| (place(prompts), prompts.to_string())).collect();
        chart(&series, &ticks, "prompts", up)
    }

    /// What was found and what was expected of the points of each name.
    fn series(&self, name: &dyn Fn(&Figures) -> String, across: &dyn Fn(&Figures) -> f64) -> Vec<Series> {
        let mut names: Vec<String> = Vec::new();
        for one in &self.points {
            let name = name(one);
            if !names.contains(&name) {
                names.push(name);
            }
        }
        let mut series = Vec::new();
        for (colour, own) in names.iter().enumerate() {
            for measured in [true, false] {
                let error = |one: &Figures| {
                    if measured { one.found_latent_error } else { one.expected_velocity_error }
                };
                let named = self.points.iter().filter(|one| name(one) == *own);
                let mut points: Vec<(f64, f64)> =
                    named.filter_map(|one| Some((across(one), error(one)?))).collect();
                points.sort_by(|a, b| a.0.total_cmp(&b.0));
                if !points.is_empty() {
                    let what = if measured { "final latents, found" } else { "velocity, expected" };
                    series.push(Series { name: format!("{own} {what}"), colour, measured, points });
                }
            }
        }
        series
    }
}

impl fmt::Display for SweepReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = |number: Option<f64>| number.map_or("-".to_owned(), |number| format!("{number:.4}"));
        let found = self.points.iter().any(|one| one.found_latent_error.is_some());
        let counts = self.counts().len() > 1;
        let mut header = vec!["pattern", "ratio"];
        header.extend(counts.then_some("prompts"));
        header.push("velocity error expected");
        header.extend(found.then_some("latent error found"));
        let mut table = Table::new(header);
        for one in &self.points {
            let mut row = vec![one.pattern.to_string(), format!("{:.1}%", 100.0 * one.ratio)];
            row.extend(counts.then(|| one.prompts.to_string()));
            row.push(number(one.expected_velocity_error));
            row.extend(found.then(|| number(one.found_latent_error)));
            table.row(row);
        }
        write!(f, "{table}")
    }
}
