//! `obsdiff compare DENSE PRUNED`.

use std::path::{Path, PathBuf};

use obsdiff_engine::export::{HeldOutError, PruningRecord};
use obsdiff_engine::pipeline::{Picture, PipelineFolder};
use obsdiff_worker::preparation::compute_type;
use obsdiff_worker::stored_model::Extent;

use super::comparison::Comparison;
use super::pictures::{COLUMNS, argument_of_flag, check_out, check_place, decode, is_png, write_grid};
use super::request::Request;
use super::run::open_device;
use super::speed;
use crate::cli::CompareArgs;
use crate::context::CommandContext;
use crate::report::{self, ComparedPipelines, Loading, ReportPage, Sample};
use crate::sampling::{Sampling, Settings, load_transformer, open_pipeline};
use crate::{Error, Result};

/// Compares a pruned pipeline with the dense one.
///
/// # Errors
/// When the prompts, a pipeline or the place to write to cannot be used, or the two transformers differ in shape.
pub(super) fn compare(args: &CompareArgs, context: &mut CommandContext<'_>) -> Result<()> {
    let device = open_device(args.sampling.device)?;
    let process = &args.sampling.process;
    context.use_threads(process.threads)?;
    context.compute_here()?;
    if !is_png(&args.out) {
        return Err(Error::content(&args.out, "is not a .png file: the grid is one picture"));
    }
    let inputs = [Some(&args.dense), Some(&args.pruned), args.sampling.file.as_ref()];
    let inputs: Vec<&Path> = inputs.into_iter().flatten().map(PathBuf::as_path).collect();
    let folder = check_out(&args.out, std::slice::from_ref(&args.out), &inputs)?;
    if let Some(report) = &args.report {
        check_place(report, "--report", &inputs)?;
        report::check_file(report)?;
    }
    let folder_of = |path: &Path| context.pipeline(path, Extent::Whole);
    let folders = [folder_of(&args.dense)?, folder_of(&args.pruned)?];
    let (dense, pruned) = (open_pipeline(&folders[0])?, open_pipeline(&folders[1])?);
    let request = Request::read(&args.sampling, &folders[1])?;
    let prompts = &request.prompts;
    if !dense.transformer_config().same_but_for_blocks(&**pruned.transformer_config()) {
        let problem =
            format!("is not the configuration of {}: the two cannot be compared", args.dense.display());
        return Err(Error::content(pruned.path().join("transformer/config.json"), problem));
    }
    let progress = context.progress();
    let settings = request.settings(&dense);
    let sampling =
        Sampling::new(&dense, prompts, settings, (folder, &device), &progress).map_err(argument_of_flag)?;
    // The transformers are loaded one after the other, since both together would take twice the memory.
    let denoised = |pipeline, name| {
        let transformer = load_transformer(pipeline, compute_type(settings.dtype), &device)?;
        sampling.denoised(&*transformer, name, &progress)
    };
    let (by_dense, by_pruned) = (denoised(&dense, "sample dense")?, denoised(&pruned, "sample pruned")?);
    let error = HeldOutError::between(&by_dense.latents, &by_pruned.latents)?
        .along(&by_dense.steps, &by_pruned.steps)?;
    let pictures =
        [decode(&dense, &by_dense.latents, &device)?, decode(&dense, &by_pruned.latents, &device)?];
    let mut comparison = Comparison::new(prompts, &error, &pictures, settings, &args.out);
    let [dense_pictures, pruned_pictures] = &pictures;
    write_grid(&pairs(dense_pictures, pruned_pictures), &args.out)?;
    if let Some(path) = &args.report {
        comparison.report = Some(path.display().to_string());
        let text = report_text(args, (prompts, settings), &error, pictures, &pruned)?;
        report::write_file(&text, path)?;
    }
    if args.speed {
        comparison.speed = Some(speed::measure(&dense, &pruned, (settings, &device), context)?);
    }
    context.print(&comparison, args.json)
}

/// The text of a report on both pipelines, with what is recorded of the pruned one.
fn report_text(
    args: &CompareArgs,
    (prompts, settings): (&[String], Settings),
    error: &HeldOutError,
    pictures: [Vec<Picture>; 2],
    pruned: &PipelineFolder,
) -> Result<String> {
    let [dense_path, pruned_path] = [&args.dense, &args.pruned].map(|path| path.display().to_string());
    let record = PruningRecord::read(pruned.path())?;
    let report = ReportPage {
        name: report::name_of(&pruned_path),
        record: record.as_ref(),
        samples: Sample::of(prompts, settings.seed, &error.per_prompt, pictures),
        per_step: &error.per_step,
        loading: Some(Loading::of(pruned, &pruned_path)),
        comparison: Some(ComparedPipelines {
            dense: dense_path,
            pruned: pruned_path,
            relative_error: error.relative,
            prompts: prompts.len(),
            steps: settings.steps,
        }),
    };
    Ok(report.html())
}

/// Rows of dense pictures, each above the pruned ones of the same prompts.
fn pairs(dense: &[Picture], pruned: &[Picture]) -> Vec<Vec<Picture>> {
    let rows = dense.chunks(COLUMNS).zip(pruned.chunks(COLUMNS));
    rows.flat_map(|(dense, pruned)| [dense.to_vec(), pruned.to_vec()]).collect()
}
