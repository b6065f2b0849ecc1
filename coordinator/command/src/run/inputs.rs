//! Everything a job reads, opened and checked before any work.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use obsdiff_engine::checkpoint::{Weights, digests};
use obsdiff_engine::export::{longest_name, required_bytes};
use obsdiff_proto::{ByteSize, InputDigest, JobError, Plan};
use obsdiff_worker::conditioning::ConditioningFile;
use obsdiff_worker::grams::GramIndex;
use rustix::fs::Access;

use super::state::has_written;
use super::{grams, places};
use crate::budget::with_surveys;
use crate::described::Described;
use crate::fit::OnDevice;
use crate::job::JobFile;
use crate::progress::PackageWork;
use crate::prompts::JobPrompts;
use crate::run_time::package_work;
use crate::{Error, Result};
use crate::{conditioning, fit};

/// A job's pipeline, prompts and plan.
pub struct Inputs {
    /// The pipeline, its components checked.
    pub described: Described,
    /// The transformer's weights, not read yet.
    pub weights: Arc<Weights>,
    /// Prompts to calibrate and to evaluate on.
    pub prompts: JobPrompts,
    /// The conditioning of the prompts, where it was made elsewhere and this process has it.
    pub conditioning: Option<ConditioningFile>,
    /// The plan.
    pub plan: Plan,
    /// The folder that exists already and will hold the output, in or below it.
    pub folder: PathBuf,
    /// The output is there: an earlier process of the same job wrote it, and ended before it could remove the job's state.
    pub written: bool,
    /// Digests of the model's files, by their paths in its folder: of all that decide the result.
    pub model_files: Vec<InputDigest>,
    /// Digests of the files of prompts, by the paths that the job gives; of a job that goes by kept Grams, those of these, and theirs.
    pub prompt_files: Vec<InputDigest>,
    /// What the Grams are of that the job goes by, where it does not calibrate.
    pub kept: Option<Arc<GramIndex>>,
}

impl Inputs {
    /// Opens what the job names, checks that all of it fits together, that the output can be written and that the Grams of so many
    /// workers fit in `memory` where it is known, and plans.
    ///
    /// # Errors
    /// The first thing that cannot be used, naming the key, the file or the layer.
    pub fn open(job: &JobFile, workers: usize, memory: Option<ByteSize>) -> Result<Self> {
        Self::open_on(job, workers, memory, None)
    }

    /// The same for workers on one open GPU, with so much `free` memory that weights, activations and Grams must fit in, too.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_on(
        job: &JobFile,
        workers: usize,
        memory: Option<ByteSize>,
        free: Option<ByteSize>,
    ) -> Result<Self> {
        let _span = tracing::info_span!("check").entered();
        let conditioning = conditioning::open(job)?;
        let prompts = JobPrompts::load(job, conditioning.as_ref())?;
        let described = Described::read(job, conditioning.as_ref().map(ConditioningFile::text_tokens))?;
        conditioning::check(job, conditioning.as_ref(), &described, &prompts)?;
        places::check(job)?;
        let written = has_written(job)?;
        let folder = check_output(job, &described, written)?;
        if workers > 0 {
            check_writable(job, &folder)?;
        }
        let plan = described.plan(job)?;
        if let Some(memory) = memory {
            fit::check(job, &described, &plan, workers, memory)?;
        }
        if let Some(free) = free {
            OnDevice::new(job, &described, &plan).once_open().check(workers, free)?;
        }
        let plan = with_surveys(job, &described, plan)?;
        let weights = Arc::new(described.pipeline.transformer_weights()?);
        let model_files = digests(described.pipeline.path(), &described.files, &|| ())?;
        let prompt_files = match job.kept() {
            Some(kept) => grams::files(job, kept, &model_files)?,
            None => prompts.files(&job.spec).into_iter().chain(conditioning::digest(job)?).collect(),
        };
        Ok(Self {
            described,
            weights,
            prompts,
            conditioning,
            plan,
            folder,
            written,
            model_files,
            prompt_files,
            kept: job.kept().cloned(),
        })
    }
}

impl Inputs {
    /// Digests of all files that decide the result.
    pub fn digests(&self) -> Vec<InputDigest> {
        self.model_files.iter().chain(&self.prompt_files).cloned().collect()
    }

    /// How much work each package is, by which progress is told.
    pub(crate) fn work(&self, job: &JobFile) -> Vec<PackageWork> {
        let cost = self.described.cost(&job.spec, &self.plan);
        let workload = self.described.workload(&job.spec);
        cost.packages.iter().map(|package| package_work(package, &workload)).collect()
    }

    /// The peak memory that the plan predicts for so many workers of one process.
    pub fn predicted_peak(&self, job: &JobFile, workers: usize) -> ByteSize {
        let (spec, described) = (&job.spec, &self.described);
        ByteSize(
            described.memory(spec, &self.plan).peak_of(&described.cost(spec, &self.plan), workers as u64),
        )
    }
}

/// The output must be a new directory, or what the job itself has `written`, on a file system with room for it, and for the encoded
/// prompts that memory is not to hold.
fn check_output(job: &JobFile, described: &Described, written: bool) -> Result<PathBuf> {
    let refuse = |problem: String| Err(job.refuse(JobError::new("output.path", problem)));
    let path = &job.spec.output.path;
    if path.is_empty() || path.contains("://") {
        return refuse(format!("is \"{path}\": give a directory on this machine"));
    }
    let path = Path::new(path);
    let Some(name) = path.file_name() else {
        return refuse(format!("is {}, which ends in no name: give the directory a name", path.display()));
    };
    if path.symlink_metadata().is_ok() && !written {
        return refuse(format!(
            "is {}, which exists already: choose another, or move it away",
            path.display()
        ));
    }
    let existing = path.ancestors().skip(1).find(|p| p.as_os_str().is_empty() || p.exists());
    let parent = existing.filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !parent.is_dir() {
        return refuse(format!("is {}, but {} is not a directory", path.display(), parent.display()));
    }
    if written {
        return Ok(parent.to_owned());
    }
    let space = rustix::fs::statvfs(parent).map_err(|e| Error::file(parent, e.into()))?;
    let longest = longest_name(space.f_namemax);
    if name.len() as u64 > longest {
        let problem = format!(
            "is {}, whose name has {} bytes: at most {longest} can be used",
            path.display(),
            name.len()
        );
        return refuse(problem);
    }
    let free = ByteSize(space.f_bavail.saturating_mul(space.f_frsize));
    // The state lies beside the output, unless the job says otherwise.
    let conditioning = described.conditioning_bytes(&job.spec).0;
    let beside = if job.spec.output.state.is_none() { conditioning } else { 0 };
    let needed = ByteSize(required_bytes(described.pipeline.path())? + beside);
    if free < needed {
        return refuse(format!(
            "needs {needed}, but {} has {free} free: make room or choose another",
            parent.display()
        ));
    }
    Ok(parent.to_owned())
}

/// This process writes the output itself: it must be allowed to.
fn check_writable(job: &JobFile, folder: &Path) -> Result<()> {
    let access = rustix::fs::access(folder, Access::WRITE_OK | Access::EXEC_OK);
    access.map_err(|error| {
        let error = std::io::Error::from(error);
        let path = &job.spec.output.path;
        let problem = format!("is {path}, but nothing can be written to {}: {error}", folder.display());
        job.refuse(JobError::new("output.path", problem))
    })
}
