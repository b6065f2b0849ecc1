//! What a run ends with: a table of its linears, where the time went, and how far the pruned model is from the dense one.

use std::fmt;
use std::time::Duration;

use obsdiff_engine::export::{PrunedLinear, PruningRecord};
use obsdiff_proto::{ByteSize, Method};

use obsdiff_engine::export::HeldOutError;
use serde::Serialize;

use crate::spans::SpanReport;
use crate::text::{self, Table, percent};

/// What a run did; `--json` prints it as it is here.
#[derive(Serialize)]
pub struct Summary {
    /// Weights of the pruned linears.
    pub weights: u64,
    /// Those of them that are zero.
    pub zeros: u64,
    /// The largest resident set that the plan predicts.
    pub predicted_peak_memory_bytes: u64,
    /// The pruned model against the dense one; absent where no prompt was held out.
    #[serde(skip)]
    pub held_out: Option<HeldOutError>,
    /// Where the time went.
    #[serde(skip)]
    pub spans: SpanReport,
    /// The content of `pruning.json`.
    pub record: PruningRecord,
}

/// What a peak signal-to-noise ratio means: the root mean square of the differences of colours, of which there are 0 to 255.
fn levels(psnr_decibels: f64) -> String {
    let levels = 255.0 * 10f64.powf(-psnr_decibels / 20.0);
    format!("colours differ by {levels:.1} of 255 levels (root mean square)")
}

/// Marks of a bar that stands for all weights.
const BAR: u64 = 40;

/// The block that a linear is in, by the name of its module: a list of blocks and a place in it.
fn block_of(linear: &str) -> &str {
    linear.match_indices('.').nth(1).map_or(linear, |(end, _)| &linear[..end])
}

impl Summary {
    /// What a run did whose output has this record.
    pub(crate) fn new(record: PruningRecord, spans: SpanReport, predicted: ByteSize) -> Self {
        let weights = |l: &PrunedLinear| l.shape[0] as u64 * l.shape[1] as u64;
        Self {
            weights: record.linears.iter().map(weights).sum(),
            zeros: record.linears.iter().map(|l| l.zeros).sum(),
            predicted_peak_memory_bytes: predicted.0,
            held_out: record.measured.as_ref().and_then(|measured| measured.held_out.clone()),
            spans,
            record,
        }
    }

    /// The share of each block's weights that is zero, as bars.
    fn blocks(&self) -> Table {
        let mut blocks: Vec<(&str, u64, u64)> = Vec::new();
        for linear in &self.record.linears {
            let block = block_of(&linear.name);
            let weights = linear.shape[0] as u64 * linear.shape[1] as u64;
            match blocks.iter_mut().find(|(name, ..)| *name == block) {
                Some((_, zeros, all)) => (*zeros, *all) = (*zeros + linear.zeros, *all + weights),
                None => blocks.push((block, linear.zeros, weights)),
            }
        }
        let mut table = Table::new(["block", "zeros", "0 to 100%"]);
        for (block, zeros, all) in blocks {
            let marks = (zeros * BAR).checked_div(all).unwrap_or(0) as usize;
            table.row([block.to_owned(), percent(zeros, all), "#".repeat(marks)]);
        }
        table
    }

    /// What the error of final latents means: as a share, for pictures, and beside magnitude pruning.
    fn meaning(&self, error: &HeldOutError, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "that is {:.1}% of their length (L2 norm), from the same prompts and the same noise",
            100.0 * error.relative
        )?;
        if let Some(pictures) = &error.pictures {
            let what = pictures.mean_psnr_decibels.map_or("equal the dense model's".to_owned(), |psnr| {
                format!("have a PSNR of {psnr:.2} dB to the dense model's: {}", levels(psnr))
            });
            writeln!(f, "pictures of {} of these prompts {what}", pictures.count)?;
        }
        let Some(baseline) = self.record.measured.as_ref().and_then(|m| m.baseline.as_ref()) else {
            return Ok(());
        };
        let psnr = baseline.held_out.pictures.as_ref().and_then(|pictures| pictures.mean_psnr_decibels);
        writeln!(
            f,
            "{} pruning instead ({} zeros): latents differ by {:.4}{}",
            if baseline.method == Method::L1 { "l1" } else { "magnitude" },
            percent(baseline.zeros, baseline.weights),
            baseline.held_out.relative,
            psnr.map_or(String::new(), |psnr| format!(", pictures have a PSNR of {psnr:.2} dB"))
        )
    }

    /// What each attention and feed-forward network kept, and what the whole transformer has left.
    fn structures(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.record.structures.is_empty() {
            return Ok(());
        }
        let mut table = Table::new(["structure", "kept", "of", "went", "relative error"]);
        for s in &self.record.structures {
            let parts = if s.heads { "heads" } else { "neurons" };
            table.row([
                s.name.clone(),
                s.kept.to_string(),
                format!("{} {parts}", s.of),
                percent((s.of - s.kept) as u64, s.of as u64),
                s.error.map_or("-".to_owned(), |e| format!("{e:.5}")),
            ]);
        }
        writeln!(f, "{table}")?;
        let Some(sizes) = self.record.sizes else { return Ok(()) };
        let [before, after] = sizes.parameters.map(text::count);
        writeln!(f, "parameters {before} -> {after}")?;
        let [before, after] = sizes.forward_flops;
        let saved = 100.0 * (1.0 - after / before);
        writeln!(f, "forward call {} -> {} ({saved:.2}% less)\n", text::flops(before), text::flops(after))
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let probed = self.record.linears.iter().any(|linear| linear.cost.is_some());
        let mut header =
            vec!["linear", "shape", "zeros", "damping", "unrefined error", "relative output error"];
        header.extend(probed.then_some("cost"));
        let mut table = Table::new(header);
        for linear in &self.record.linears {
            let [rows, width] = linear.shape;
            let mut row = vec![
                linear.name.clone(),
                format!("{rows} x {width}"),
                percent(linear.zeros, rows as u64 * width as u64),
                linear.damping.map_or("-".to_owned(), |d| d.to_string()),
                linear.unrefined_error.map_or("-".to_owned(), |e| format!("{e:.5}")),
                linear.relative_error.map_or("-".to_owned(), |e| format!("{e:.5}")),
            ];
            row.extend(probed.then(|| linear.cost.map_or("-".to_owned(), |cost| format!("{cost:.4}"))));
            table.row(row);
        }
        writeln!(f, "{table}")?;
        if probed {
            writeln!(f, "{}", self.blocks())?;
        }
        self.structures(f)?;
        if self.spans.whole.is_zero() {
            // Other processes did the work.
            if let Some(measured) = &self.record.measured {
                writeln!(f, "took {}", text::duration(Duration::from_secs_f64(measured.seconds.max(0.0))))?;
            }
        } else {
            writeln!(f, "{}", self.spans)?;
        }
        writeln!(
            f,
            "{} linears, {} of their weights are zero",
            self.record.linears.len(),
            percent(self.zeros, self.weights)
        )?;
        if let Some(peak) = self.record.measured.as_ref().and_then(|m| m.peak_memory_bytes) {
            let predicted = ByteSize(self.predicted_peak_memory_bytes);
            writeln!(f, "peak memory {} ({predicted} predicted)", ByteSize(peak))?;
        }
        if let Some(error) = self.record.measured.as_ref().and_then(|m| m.expected_velocity_error) {
            writeln!(f, "velocity expected to differ from the dense model's by {error:.4}")?;
        }
        if let Some(error) = &self.held_out {
            let prompts = error.per_prompt.len();
            writeln!(
                f,
                "final latents on {prompts} held-out prompts differ from the dense model's by {:.4}",
                error.relative
            )?;
            self.meaning(error, f)?;
        }
        write!(f, "written to {}", self.record.job.output.path)
    }
}
