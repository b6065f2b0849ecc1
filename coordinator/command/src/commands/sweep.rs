//! `obsdiff sweep GRAMS`.

use obsdiff_engine::device::ComputeDevice;
use obsdiff_files::starts_with_tilde;
use obsdiff_proto::Pattern;

use super::run::open_device;
use crate::cli::{SweepArgs, TILDE};
use crate::context::CommandContext;
use crate::run::{DenseSamples, RunContext};
use crate::signals::Answer;
use crate::sweep::{self, Point, SweepFolder};
use crate::{Error, Result};

/// Shows errors against sparsity or prompts: what a survey expects at once, then what is found.
///
/// # Errors
/// Grams, ratios or patterns that cannot be used, before any work; a failure of the engine later.
pub(super) fn sweep(args: &SweepArgs, context: &mut CommandContext<'_>) -> Result<()> {
    if starts_with_tilde(&args.grams) {
        return Err(Error::key("GRAMS", format!("is {}, but {TILDE}", args.grams)));
    }
    let place = SweepFolder::new(&args.out)?;
    let mut points = points(args, &place, context)?;
    // What is expected takes no device.
    let device = if args.predicted { ComputeDevice::Cpu } else { open_device(args.device)? };
    context.use_threads(args.process.threads)?;
    context.compute_here()?;
    let progress = context.progress();
    for left in &place.removed {
        progress.note(&format!("{} is removed, which a sweep that was killed had left", left.display()));
    }
    context.signals.respond({
        let removal = place.removal();
        move |signal| {
            removal.remove();
            Answer::Exit(format!("stopped by {signal}: nothing is kept of the sweep"))
        }
    });
    let expected = sweep::predict(&mut points, &progress)?;
    writeln!(context.out, "{expected}")?;
    context.out.flush()?;
    if !args.predicted {
        let process = RunContext {
            device: &device,
            outlook: None,
            traces: None,
            workers: args.workers.map(|workers| workers as usize),
            memory: context.memory,
            save_every: None,
            baseline: false,
            progress: &progress,
            spans: &context.spans,
            disk: &context.disk,
            dense: &DenseSamples::default(),
        };
        sweep::measure(&mut points, &process)?;
    }
    let hardware = (!args.predicted).then(|| device.hardware());
    let report = sweep::write(&points, hardware, &place, &context.disk)?;
    if !args.predicted {
        writeln!(context.out, "{report}")?;
    }
    Ok(writeln!(context.out, "written to {}", args.out.display())?)
}

/// The jobs of all points: each pattern with each ratio, but for N:M, which has one of its own, and with each number of prompts.
fn points(args: &SweepArgs, place: &SweepFolder, context: &CommandContext<'_>) -> Result<Vec<Point>> {
    let takes_ratio = |pattern: &Pattern| !matches!(pattern, Pattern::NToM { .. });
    if !args.ratios.is_empty() && !args.patterns.iter().any(takes_ratio) {
        let problem = "is given, but each of --patterns has a share of its own: leave it out, or add another pattern, such as \
                       unstructured";
        return Err(Error::key("--ratios", problem));
    }
    let mut points = Vec::new();
    for pattern in &args.patterns {
        let by_ratio = takes_ratio(pattern);
        let ratios: Vec<Option<f64>> =
            if by_ratio { args.ratios.iter().copied().map(Some).collect() } else { vec![None] };
        if ratios.is_empty() {
            return Err(Error::key(
                "--ratios",
                format!("is missing, which \"{pattern}\" needs: give some, such as 0.4,0.6"),
            ));
        }
        let prompts: Vec<Option<u32>> = if args.prompts.is_empty() {
            vec![None]
        } else {
            args.prompts.iter().copied().map(Some).collect()
        };
        for (ratio, prompts) in
            ratios.iter().flat_map(|ratio| prompts.iter().map(move |prompts| (ratio, prompts)))
        {
            let mut sets = args.sets.clone();
            sets.push(format!("sparsity.pattern={pattern}"));
            sets.push(ratio.map_or("sparsity.ratio=".to_owned(), |ratio| format!("sparsity.ratio={ratio}")));
            sets.extend(prompts.map(|prompts| format!("calibration.gram_prompts={prompts}")));
            sets.push(format!("output.path={}", place.output(points.len()).display()));
            points.push(Point::new(context.job_of_grams(&args.grams, &sets)?));
        }
    }
    Ok(points)
}
