//! What a run ends with: a table of its linears, where the time went, and how far the pruned model is from the dense one.

use std::fmt;

use obsdiff_engine::export::{PrunedLinear, PruningRecord};
use obsdiff_proto::ByteSize;

use super::HeldOutError;
use crate::spans::SpanReport;
use crate::text::{self, Table, percent};

/// What a run did.
pub struct Summary {
    /// The content of `pruning.json`.
    pub record: PruningRecord,
    /// The pruned model against the dense one; absent where no prompt was held out.
    pub held_out: Option<HeldOutError>,
    /// Where the time went.
    pub spans: SpanReport,
    /// The largest resident set that the plan predicts.
    pub predicted: ByteSize,
    /// The largest resident set of the process.
    pub peak_resident: Option<ByteSize>,
}

/// Marks of a bar that stands for all weights.
const BAR: u64 = 40;

/// The block that a linear is in, by the name of its module: a list of blocks and a place in it.
fn block_of(linear: &str) -> &str {
    linear.match_indices('.').nth(1).map_or(linear, |(end, _)| &linear[..end])
}

impl Summary {
    /// Weights that are zero, and all weights, of the pruned linears.
    pub fn zeros(&self) -> (u64, u64) {
        let weights = |l: &PrunedLinear| l.shape[0] as u64 * l.shape[1] as u64;
        let linears = &self.record.linears;
        (linears.iter().map(|l| l.zeros).sum(), linears.iter().map(weights).sum())
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
        writeln!(f, "{}", self.spans)?;
        let (zeros, weights) = self.zeros();
        writeln!(
            f,
            "{} linears, {} of their weights are zero",
            self.record.linears.len(),
            percent(zeros, weights)
        )?;
        if let Some(peak) = self.peak_resident {
            writeln!(f, "peak memory {peak} ({} predicted)", self.predicted)?;
        }
        if let Some(error) = &self.held_out {
            let prompts = error.per_prompt.len();
            writeln!(
                f,
                "final latents on {prompts} held-out prompts differ from the dense model's by {:.4}",
                error.relative
            )?;
        }
        write!(f, "written to {}", self.record.job.output.path)
    }
}
