//! `obsdiff sample DIR`.

use std::fs;
use std::path::{Path, PathBuf};

use obsdiff_engine::pipeline::Picture;
use obsdiff_worker::preparation::compute_type;
use obsdiff_worker::stored_model::Extent;

use super::pictures::{COLUMNS, argument_of_flag, check_format, check_place, decode, is_png, write_grid};
use super::request::Request;
use super::run::open_device;
use crate::cli::SampleArgs;
use crate::context::CommandContext;
use crate::sampling::{Sampling, load_transformer, open_pipeline};
use crate::text::printable_line;
use crate::{Error, Result, picture};

/// Makes pictures from prompts.
///
/// # Errors
/// When the prompts, the pipeline or the place to write to cannot be used.
pub(super) fn sample(args: &SampleArgs, context: &mut CommandContext<'_>) -> Result<()> {
    let device = open_device(args.sampling.device)?;
    let process = &args.sampling.process;
    context.use_threads(process.threads)?;
    context.compute_here()?;
    check_format(&args.out)?;
    let inputs = [Some(&args.pipeline), args.sampling.file.as_ref()];
    let inputs: Vec<&Path> = inputs.into_iter().flatten().map(PathBuf::as_path).collect();
    files(&args.out, 0)?;
    let folder = check_place(&args.out, "--out", &inputs)?;
    let source = context.pipeline(&args.pipeline, Extent::Whole)?;
    let pipeline = open_pipeline(&source)?;
    let request = Request::read(&args.sampling, &source)?;
    let prompts = &request.prompts;
    files(&args.out, prompts.len())?.iter().try_for_each(|file| picture::check_replaceable(file))?;
    let progress = context.progress();
    let settings = request.settings(&pipeline);
    let sampling = Sampling::new(&pipeline, prompts, settings, (folder, &device), &progress)
        .map_err(argument_of_flag)?;
    let transformer = load_transformer(&pipeline, compute_type(settings.dtype), &device)?;
    let denoised = sampling.denoised(&*transformer, "sample", &progress)?;
    drop(transformer);
    write(args, prompts, &decode(&pipeline, &denoised.latents, &device)?, context)
}

fn write(
    args: &SampleArgs,
    prompts: &[String],
    pictures: &[Picture],
    context: &mut CommandContext<'_>,
) -> Result<()> {
    if is_png(&args.out) {
        let rows: Vec<_> = pictures.chunks(COLUMNS).map(<[Picture]>::to_vec).collect();
        write_grid(&rows, &args.out)?;
        writeln!(context.out, "{}", args.out.display())?;
        return Ok(());
    }
    fs::create_dir_all(&args.out).map_err(|e| Error::file(&args.out, e))?;
    for ((picture, prompt), path) in pictures.iter().zip(prompts).zip(files(&args.out, prompts.len())?) {
        picture::write_png(picture, &path)?;
        writeln!(context.out, "{}  {}", path.display(), printable_line(prompt))?;
    }
    Ok(())
}

/// The files that so many pictures go to: one grid, or each a file of its own in a folder.
fn files(out: &Path, pictures: usize) -> Result<Vec<PathBuf>> {
    if is_png(out) {
        return Ok(vec![out.to_owned()]);
    }
    if out.exists() && !out.is_dir() {
        return Err(Error::content(out, "is neither a folder nor a .png file: choose another --out"));
    }
    Ok((0..pictures).map(|i| out.join(format!("{i:04}.png"))).collect())
}
