//! What a run ends with, on one screen of 80 columns: what went, the error, time and memory, a bar for each block, the worst linears, and
//! how to load the result. The figures of every linear are in `pruning.json`.

mod blocks;
mod worst;

#[cfg(test)]
mod tests;

use std::fmt;
use std::time::Duration;

use obsdiff_engine::export::{HeldOutError, Measured, PrunedLinear, PruningRecord};
use obsdiff_engine::pipeline::PipelineFolder;
use obsdiff_proto::{ByteSize, Method, OutputLayout, Pattern, Target, counted};
use obsdiff_store::OutputStore;
use serde::Serialize;

use crate::report::{given_as_none, module_of, name_of};
use crate::spans::SpanReport;
use crate::text::{self, percent};

/// Columns of the narrowest terminal that shows a summary without wrapped lines, unless a path is too long for it.
const WIDTH: usize = 80;
/// Lines of the lowest terminal that shows all of a summary.
const HEIGHT: usize = 24;
/// Columns of the names of figures.
const NAMES: usize = 10;
/// The least share of the time that is shown.
const LEAST_SHARE: f64 = 0.01;

/// What a run did; `--json` prints it as it is here.
#[derive(Serialize)]
pub struct Summary {
    /// Weights of the pruned linears.
    pub weights: u64,
    /// Those of them that are zero.
    pub zeros: u64,
    /// The largest resident set that the plan predicts.
    pub predicted_peak_memory_bytes: u64,
    /// The pruned model against the source; absent where no prompt was held out.
    #[serde(skip)]
    pub held_out: Option<HeldOutError>,
    /// Where the time went.
    #[serde(skip)]
    pub spans: SpanReport,
    /// The text encoders and tokenizers that the pipeline does without.
    #[serde(skip)]
    pub absent_text: Vec<&'static str>,
    /// Whether the source had lost heads and neurons before.
    #[serde(skip)]
    pub source_is_shrunk: bool,
    /// The content of `pruning.json`.
    pub record: PruningRecord,
}

/// Weights of a linear before it was pruned.
fn weights(linear: &PrunedLinear) -> u64 {
    linear.shape[0] as u64 * linear.shape[1] as u64
}

/// What a peak signal-to-noise ratio means: the root mean square of the differences of colours, of which there are 0 to 255.
fn levels(psnr_decibels: f64) -> f64 {
    255.0 * 10f64.powf(-psnr_decibels / 20.0)
}

impl Summary {
    /// What a run did whose output has this record.
    pub(crate) fn new(
        record: PruningRecord,
        spans: SpanReport,
        predicted: ByteSize,
        source: &PipelineFolder,
    ) -> Self {
        let (absent_text, is_shrunk) = (source.absent_text().to_vec(), module_of(source).is_some());
        Self { absent_text, source_is_shrunk: is_shrunk, ..Self::of_any_source(record, spans, predicted) }
    }

    /// The same, but for what loading the output takes over from its source.
    fn of_any_source(record: PruningRecord, spans: SpanReport, predicted: ByteSize) -> Self {
        Self {
            weights: record.linears.iter().map(weights).sum(),
            zeros: record.linears.iter().map(|l| l.zeros).sum(),
            predicted_peak_memory_bytes: predicted.0,
            held_out: record.measured.as_ref().and_then(|measured| measured.held_out.clone()),
            spans,
            absent_text: Vec::new(),
            source_is_shrunk: false,
            record,
        }
    }

    /// Whether heads and neurons went, so that zeros are not what the user asked for.
    fn is_structured(&self) -> bool {
        !self.record.structures.is_empty()
    }

    /// What was pruned, and by how much.
    fn headline(&self) -> String {
        let sparsity = &self.record.job.sparsity;
        let by = match (sparsity.pattern, self.record.job.output.layout) {
            (Pattern::Structured, OutputLayout::Masked) => ", masked".to_owned(),
            _ if sparsity.surveys_linears() && sparsity.pattern == Pattern::Unstructured => {
                ", global".to_owned()
            }
            (Pattern::NToM { .. }, _) if sparsity.dense > 0.0 => format!(", dense {}", sparsity.dense),
            _ => String::new(),
        };
        let how = format!("{}, {}{by}", sparsity.pattern, sparsity.method().name());
        if !self.is_structured() {
            return format!(
                "Pruned {} of {} weights in {}: {how}",
                percent(self.zeros, self.weights),
                text::count(self.weights),
                counted(self.record.linears.len(), "linear")
            );
        }
        let gone = |heads: bool| {
            let of = self.record.structures.iter().filter(|s| s.heads == heads);
            let [went, all] = of.fold([0, 0], |[went, all], s| [went + s.of - s.kept, all + s.of]);
            (all > 0).then(|| format!("{went} of {}", counted(all, if heads { "head" } else { "neuron" })))
        };
        let gone: Vec<String> = [gone(true), gone(false)].into_iter().flatten().collect();
        format!("Removed {}: {how}", gone.join(" and "))
    }

    /// Zeros in linears of a structured job that a rule prunes by weights.
    fn zeros_beside_structures(&self) -> Option<String> {
        let others = || {
            self.record.linears.iter().filter(|linear| !matches!(linear.target, Target::Structured { .. }))
        };
        let zeros = others().map(|linear| linear.zeros).sum();
        (self.is_structured() && others().next().is_some()).then(|| {
            let share = percent(zeros, others().map(weights).sum());
            format!("{share} of the weights of {}", counted(others().count(), "other linear"))
        })
    }

    /// Names and values of what was measured, each a line.
    fn figures(&self) -> Vec<(&'static str, String)> {
        let measured = self.record.measured.as_ref();
        let mut figures = Vec::new();
        figures.extend(self.zeros_beside_structures().map(|zeros| ("zeros", zeros)));
        if let Some(error) = &self.held_out {
            figures.extend(errors(error));
        }
        figures.extend(measured.and_then(baseline).map(|error| ("baseline", error)));
        if let Some(error) = measured.and_then(|m| m.expected_velocity_error) {
            figures.push(("expected", format!("velocity differs from the source's by {error:.4}")));
        }
        if let Some(sizes) = self.record.sizes {
            let [before, after] = sizes.parameters.map(text::count);
            let saved = 100.0 * (1.0 - sizes.forward_flops[1] / sizes.forward_flops[0]);
            let call = format!("{saved:.1}% less arithmetic a forward call");
            figures.push(("size", format!("{before} -> {after} parameters, {call}")));
        }
        figures.extend(measured.map(|measured| ("time", time(measured))));
        if let Some(peak) = measured.and_then(|m| m.peak_memory_bytes) {
            let predicted = ByteSize(self.predicted_peak_memory_bytes);
            figures.push(("memory", format!("peak {} ({predicted} predicted)", ByteSize(peak))));
        }
        figures.push(("written", format!("{} (see report.html there)", self.record.job.output.path)));
        figures
    }

    /// How to load the output, as Python: in one type, because by default diffusers takes f32, but transformers 5 that of the file, and such
    /// parts do not fit. What diffusers 0.40 and later also call `dtype`, earlier ones know as `torch_dtype` alone.
    fn loading(&self) -> String {
        let path = &self.record.job.output.path;
        let (path, first) = if OutputStore::is_url(path) {
            let name = name_of(path);
            let first = format!("download it into a folder {name:?}, then ");
            (name, first)
        } else {
            (path.clone(), String::new())
        };
        // On a line of their own.
        let without = given_as_none(&self.absent_text).replacen(", ", ",\n      ", 1);
        let shrinks = self.is_structured() && self.record.job.output.layout == OutputLayout::Shrunk;
        if shrinks || self.source_is_shrunk {
            return format!(
                "{first}load it in Python (diffusers 0.36 or later: AutoModel, DiffusionPipeline):\n  \
                 t = AutoModel.from_pretrained({:?}, trust_remote_code=True)\n  \
                 pipeline = DiffusionPipeline.from_pretrained({path:?}, transformer=t{without}).to(t.dtype)",
                format!("{}/transformer", path.trim_end_matches('/'))
            );
        }
        format!(
            "{first}load it in Python:\n  \
             pipeline = diffusers.DiffusionPipeline.from_pretrained(\n      {path:?}, torch_dtype=torch.bfloat16{without})"
        )
    }

    /// The text for a terminal of so many columns: on a narrow one the bars of blocks are shorter. Other lines may be wrapped there.
    pub(crate) fn fitted(&self, columns: usize) -> String {
        let mut lines = vec![self.headline()];
        lines.extend(self.figures().into_iter().map(|(name, value)| format!("{name:<NAMES$}{value}")));
        let (worst, loading) = (worst::lines(&self.record), self.loading());
        let taken = lines.len() + worst.len() + loading.lines().count();
        // A line below is the shell's.
        let rows = (HEIGHT - 1).saturating_sub(taken);
        lines.extend(blocks::lines(&self.record, rows, columns.min(WIDTH)));
        lines.extend(worst);
        lines.push(loading);
        lines.join("\n")
    }
}

/// The error of final latents, and of pictures where some were decoded.
fn errors(error: &HeldOutError) -> Vec<(&'static str, String)> {
    let prompts = counted(error.per_prompt.len(), "held-out prompt");
    let mut lines =
        vec![("error", format!("final latents differ by {:.4} (L2, relative) on {prompts}", error.relative))];
    if let Some(pictures) = &error.pictures {
        let of = match error.per_prompt.len() {
            1 => "this prompt".to_owned(),
            all if pictures.count == all => "these prompts".to_owned(),
            _ => format!("{} of these prompts", pictures.count),
        };
        let what = match pictures.mean_psnr_decibels {
            Some(psnr) => {
                let levels = levels(psnr);
                format!("PSNR {psnr:.2} dB on {of} (colours {levels:.1} of 255 levels off)")
            }
            None => format!("equal the source's on {of}"),
        };
        lines.push(("pictures", what));
    }
    lines
}

/// What magnitude pruning makes of the same model, where that was asked for.
fn baseline(measured: &Measured) -> Option<String> {
    let baseline = measured.baseline.as_ref()?;
    let psnr = baseline.held_out.pictures.as_ref().and_then(|pictures| pictures.mean_psnr_decibels);
    Some(format!(
        "{} pruning ({} of the weights): error {:.4}{}",
        if baseline.method == Method::L1 { "l1" } else { "magnitude" },
        percent(baseline.zeros, baseline.weights),
        baseline.held_out.relative,
        psnr.map_or(String::new(), |psnr| format!(", PSNR {psnr:.2} dB"))
    ))
}

/// How long it took, and the largest shares of that, as many as fit.
fn time(measured: &Measured) -> String {
    let whole = measured.seconds.max(0.0);
    let mut line = text::duration(Duration::from_secs_f64(whole));
    let mut before = ": ";
    for phase in measured.phases.iter().filter(|phase| phase.seconds > LEAST_SHARE * whole) {
        let share = format!("{before}{} {:.0}%", phase.phase, 100.0 * phase.seconds / whole);
        if NAMES + line.chars().count() + share.chars().count() > WIDTH {
            break;
        }
        line.push_str(&share);
        before = ", ";
    }
    line
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.fitted(WIDTH))
    }
}
