//! Everything a job reads, opened and checked before any work.

use std::path::Path;

use obsdiff_core::{Tokens, plan};
use obsdiff_engine::checkpoint::Weights;
use obsdiff_engine::export::{InputDigest, required_bytes, sha256};
use obsdiff_engine::model::sd3::Sd3Config;
use obsdiff_engine::pipeline::{LatentSize, PipelineFolder};
use obsdiff_proto::{Inventory, JobError, Plan};

use crate::job::Job;
use crate::prompts::JobPrompts;
use crate::{Error, Result};

/// A job's pipeline, prompts and plan.
pub struct Inputs {
    /// The pipeline, its components checked.
    pub folder: PipelineFolder,
    /// The transformer's configuration.
    pub config: Sd3Config,
    /// The transformer's weights, not read yet.
    pub weights: Weights,
    /// What the transformer can have pruned.
    pub inventory: Inventory,
    /// The size of a picture's latents.
    pub size: LatentSize,
    /// Prompts to calibrate and to evaluate on.
    pub prompts: JobPrompts,
    /// The plan.
    pub plan: Plan,
    /// Digests of the files that decide the result.
    pub digests: Vec<InputDigest>,
}

impl Inputs {
    /// Opens what the job names, checks that all of it fits together and that the output can be written, and plans.
    ///
    /// # Errors
    /// The first thing that cannot be used, naming the key, the file or the layer.
    pub fn open(job: &Job) -> Result<Self> {
        let _span = tracing::info_span!("check").entered();
        let spec = &job.spec;
        let prompts = JobPrompts::load(job)?;
        let folder = PipelineFolder::open(Path::new(&spec.model.path))?;
        check_output(job, &folder)?;
        let config = Sd3Config::read(&folder.transformer())?;
        let weights = folder.transformer_weights()?;
        config.check(&weights)?;
        let size = folder.latent_size(spec.calibration.height, spec.calibration.width)?;
        let length = spec.calibration.max_sequence_length as usize;
        let encoders = folder.text_encoders(length, &candle_core::Device::Cpu)?;
        let tokens = Tokens { image: size.tokens as u64, text: encoders.tokens() as u64 };
        folder.scheduler()?.schedule(spec.calibration.steps as usize, size.tokens)?;
        let inventory = config.inventory();
        let plan = plan(spec, &inventory, tokens).map_err(|e| job.unplanned(e))?;
        let digests = digests(job, &prompts, &weights)?;
        Ok(Self { folder, config, weights, inventory, size, prompts, plan, digests })
    }
}

/// The output must be a new directory on a file system with room for it.
fn check_output(job: &Job, folder: &PipelineFolder) -> Result<()> {
    let refuse = |problem: String| Err(job.refuse(JobError::new("output.path", problem)));
    let path = &job.spec.output.path;
    if path.is_empty() || path.contains("://") {
        return refuse(format!("is \"{path}\": give a directory on this machine"));
    }
    let path = Path::new(path);
    if path.symlink_metadata().is_ok() {
        return refuse(format!("is {}, which exists already: choose another, or move it away", path.display()));
    }
    let Some(parent) = path.ancestors().skip(1).find(|p| p.as_os_str().is_empty() || p.exists()) else {
        return refuse(format!("is {}, which is no directory that can be made", path.display()));
    };
    let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    if !parent.is_dir() {
        return refuse(format!("is {}, but {} is not a directory", path.display(), parent.display()));
    }
    let space = rustix::fs::statvfs(parent).map_err(|e| Error::file(parent, e.into()))?;
    let free = space.f_bavail.saturating_mul(space.f_frsize);
    let needed = required_bytes(folder.path())?;
    if free < needed {
        let (needed, free) = (obsdiff_proto::ByteSize(needed), obsdiff_proto::ByteSize(free));
        return refuse(format!("needs {needed}, but {} has {free} free: make room or choose another", parent.display()));
    }
    Ok(())
}

fn digests(job: &Job, prompts: &JobPrompts, weights: &Weights) -> Result<Vec<InputDigest>> {
    let root = Path::new(&job.spec.model.path);
    let config = root.join("transformer/config.json");
    let files = weights.files().iter().map(|file| file.path()).chain([config.as_path()]);
    let mut digests = Vec::new();
    for file in files {
        let name = file.strip_prefix(root).unwrap_or(file);
        digests.push(InputDigest { path: name.display().to_string(), sha256: sha256(file)? });
    }
    digests.push(InputDigest { path: job.spec.calibration.prompts.clone(), sha256: prompts.digest.clone() });
    Ok(digests)
}
