//! `obsdiff encode JOB --out FILE`.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::Path;

use obsdiff_engine::calibrate::Encoded;
use obsdiff_proto::JobError;
use obsdiff_worker::conditioning::{ConditioningMetadata, is_ours, write_file};
use obsdiff_worker::preparation::compute_type;

use super::pictures::check_out;
use crate::cli::EncodeArgs;
use crate::context::CommandContext;
use crate::described::Described;
use crate::job::JobFile;
use crate::prompts::JobPrompts;
use crate::sampling::encoding;
use crate::writing::{put_in_place, unfinished_beside};
use crate::{Error, Result};

/// Writes the conditioning of a job's prompts to a file.
///
/// # Errors
/// When the job, its prompts, the text encoders or the place to write to cannot be used.
pub(super) fn encode(args: &EncodeArgs, context: &mut CommandContext<'_>) -> Result<()> {
    let device = super::run::open_device(args.device)?;
    context.use_threads(args.process.threads)?;
    context.compute_here()?;
    let job = context.job(&args.job)?;
    let spec = &job.spec;
    if let Some(file) = &spec.calibration.conditioning {
        let problem = format!(
            "is {file}, so the prompts are encoded already: unset it by --set calibration.conditioning= to encode them again"
        );
        return Err(job.refuse(JobError::new("calibration.conditioning", problem)));
    }
    let prompts = JobPrompts::load(&job, None)?;
    if prompts.calibration.is_empty() && prompts.held_out.is_empty() {
        let problem = "is missing: there is nothing to encode";
        return Err(job.refuse(JobError::new("calibration.prompts", problem)));
    }
    let folder = check_place(&job, &args.out)?;
    let described = Described::with_encoders(&job)?;
    let texts: Vec<String> = prompts.calibration.into_iter().chain(prompts.held_out).collect();
    let progress = context.progress();
    let tokens = spec.calibration.max_sequence_length;
    let encoded = encoding(texts.len(), &progress, |on_encoded| {
        let encoders = described.pipeline.text_encoders(tokens as usize)?;
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        let dtype = compute_type(spec.model.dtype);
        let encoders = encoders.on(&device, dtype).for_prompts(texts.len(), &device, dtype)?;
        Ok(Encoded::new(&encoders, &texts, dtype, folder, on_encoded)?)
    })?;
    let count = texts.len();
    let about = ConditioningMetadata {
        architecture: Some(described.pipeline.architecture().transformer_class.to_owned()),
        max_sequence_length: Some(tokens),
        prompts: Some(texts),
    };
    write(&args.out, folder, &about, &encoded)?;
    writeln!(context.out, "{}: {count} prompts of {} tokens", args.out.display(), described.text_tokens)?;
    Ok(())
}

/// Refuses a place that could not be written to, that lies in what the job reads, or where something is that obsdiff did not write.
/// Returns the folder that it is in.
fn check_place<'a>(job: &JobFile, path: &'a Path) -> Result<&'a Path> {
    let spec = &job.spec;
    let inputs =
        [Some(&spec.model.path), spec.calibration.prompts.as_ref(), spec.evaluation.prompts.as_ref()];
    let inputs: Vec<&Path> = inputs.into_iter().flatten().map(Path::new).collect();
    let folder = check_out(path, &[], &inputs)?;
    check_replaceable(path)?;
    Ok(folder)
}

/// Refuses a path where something is that obsdiff did not write.
fn check_replaceable(path: &Path) -> Result<()> {
    let Ok(found) = path.symlink_metadata() else { return Ok(()) };
    if found.is_file() && is_ours(path) {
        Ok(())
    } else {
        let problem =
            "exists and is no conditioning that obsdiff wrote: choose another --out, or move it away";
        Err(Error::content(path, problem))
    }
}

/// Writes beside the file, syncs, and moves into place. Encoding takes its time: what a user has put there in the meantime stays.
fn write(path: &Path, folder: &Path, about: &ConditioningMetadata, encoded: &Encoded) -> Result<()> {
    let failed = |e| Error::file(path, e);
    let mut file = unfinished_beside(path, ".safetensors").map_err(failed)?;
    let mut out = BufWriter::new(file.as_file_mut());
    write_file(&mut out, about, encoded)?.map_err(failed)?;
    out.flush().map_err(failed)?;
    drop(out);
    put_in_place(file, (path, path), || check_replaceable(path))?;
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed)
}
