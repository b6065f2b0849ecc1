//! `obsdiff sample DIR`.

use std::fs;

use obsdiff_engine::pipeline::{Picture, PipelineFolder};

use super::pictures::{COLUMNS, argument_of_flag, check_out, decode, is_png, write_grid};
use crate::cli::SampleArgs;
use crate::sampling::{Sampling, load_transformer};
use crate::session::Session;
use crate::{Error, Result, picture};

/// Makes pictures from prompts.
///
/// # Errors
/// When the prompts, the pipeline or the place to write to cannot be used.
pub(super) fn sample(args: &SampleArgs, session: &mut Session<'_>) -> Result<()> {
    let process = &args.sampling.process;
    session.use_threads(process.threads)?;
    let folder = check_out(&args.out)?;
    let prompts = args.sampling.read_prompts()?;
    let pipeline = PipelineFolder::open(&args.pipeline)?;
    let progress = session.progress(process.quiet);
    let sampling = Sampling::new(&pipeline, &prompts, args.sampling.settings(), folder, &progress)
        .map_err(argument_of_flag)?;
    let latents = sampling.latents(&load_transformer(&pipeline)?, "sample", &progress)?;
    write(args, &prompts, &decode(&pipeline, &latents)?, session)
}

fn write(
    args: &SampleArgs,
    prompts: &[String],
    pictures: &[Picture],
    session: &mut Session<'_>,
) -> Result<()> {
    if is_png(&args.out) {
        let rows: Vec<_> = pictures.chunks(COLUMNS).map(<[Picture]>::to_vec).collect();
        write_grid(&rows, &args.out)?;
        writeln!(session.out, "{}", args.out.display())?;
        return Ok(());
    }
    fs::create_dir_all(&args.out).map_err(|e| Error::file(&args.out, e))?;
    for (i, (picture, prompt)) in pictures.iter().zip(prompts).enumerate() {
        let path = args.out.join(format!("{i:04}.png"));
        picture::write_png(picture, &path)?;
        writeln!(session.out, "{}  {prompt}", path.display())?;
    }
    Ok(())
}
