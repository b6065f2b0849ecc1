//! `obsdiff compare DENSE PRUNED`.

use std::path::{Path, PathBuf};

use obsdiff_engine::export::HeldOutError;
use obsdiff_engine::pipeline::Picture;
use obsdiff_worker::preparation::compute_type;

use super::comparison::Comparison;
use super::pictures::{COLUMNS, argument_of_flag, check_out, decode, is_png, write_grid};
use super::request::Request;
use super::speed;
use crate::cli::CompareArgs;
use crate::context::CommandContext;
use crate::sampling::{Sampling, load_transformer, open_pipeline};
use crate::{Error, Result};

/// Compares a pruned pipeline with the dense one.
///
/// # Errors
/// When the prompts, a pipeline or the place to write to cannot be used, or the two transformers differ in shape.
pub(super) fn compare(args: &CompareArgs, context: &mut CommandContext<'_>) -> Result<()> {
    let process = &args.sampling.process;
    context.use_threads(process.threads)?;
    context.compute_here()?;
    if !is_png(&args.out) {
        return Err(Error::content(&args.out, "is not a .png file: the grid is one picture"));
    }
    let inputs = [Some(&args.dense), Some(&args.pruned), args.sampling.file.as_ref()];
    let inputs: Vec<&Path> = inputs.into_iter().flatten().map(PathBuf::as_path).collect();
    let folder = check_out(&args.out, std::slice::from_ref(&args.out), &inputs)?;
    let request = Request::read(&args.sampling, &args.pruned)?;
    let prompts = &request.prompts;
    let (dense, pruned) = (open_pipeline(&args.dense)?, open_pipeline(&args.pruned)?);
    if !dense.transformer_config().same_but_for_blocks(&**pruned.transformer_config()) {
        let problem =
            format!("is not the configuration of {}: the two cannot be compared", args.dense.display());
        return Err(Error::content(pruned.path().join("transformer/config.json"), problem));
    }
    let progress = context.progress();
    let settings = request.settings(&dense);
    let sampling = Sampling::new(&dense, prompts, settings, folder, &progress).map_err(argument_of_flag)?;
    // The transformers are loaded one after the other, since both together would take twice the memory.
    let latents = |pipeline, name| {
        let transformer = load_transformer(pipeline, compute_type(settings.dtype))?;
        sampling.latents(&*transformer, name, &progress)
    };
    let (dense_latents, pruned_latents) =
        (latents(&dense, "sample dense")?, latents(&pruned, "sample pruned")?);
    let error = HeldOutError::between(&dense_latents, &pruned_latents)?;
    let pictures = [decode(&dense, &dense_latents)?, decode(&dense, &pruned_latents)?];
    let mut comparison = Comparison::new(prompts, &error, &pictures, settings, &args.out);
    let [dense_pictures, pruned_pictures] = &pictures;
    write_grid(&pairs(dense_pictures, pruned_pictures), &args.out)?;
    if args.speed {
        comparison.speed = Some(speed::measure(&dense, &pruned, settings, context)?);
    }
    context.print(&comparison, args.json)
}

/// Rows of dense pictures, each above the pruned ones of the same prompts.
fn pairs(dense: &[Picture], pruned: &[Picture]) -> Vec<Vec<Picture>> {
    let rows = dense.chunks(COLUMNS).zip(pruned.chunks(COLUMNS));
    rows.flat_map(|(dense, pruned)| [dense.to_vec(), pruned.to_vec()]).collect()
}
