//! A job as the workers of one process share it: it makes the engine of each worker, and exports the pruned model.

mod measuring;
mod memory;
mod output;
mod shrunk;

use std::cell::RefCell;
use std::path::PathBuf;
use std::sync::Arc;

use candle_core::{DType, Tensor};
use obsdiff_engine::calibrate::{Denoised, Trajectories};
use obsdiff_engine::checkpoint::Weights;
use obsdiff_engine::device::ComputeDevice;
use obsdiff_engine::export::{Document, Export, PruningRecord, Shrink};
use obsdiff_engine::model::DiffusionModel;
use obsdiff_engine::pruner::Pruner;
use obsdiff_files::{Disk, OnProgress};
use obsdiff_proto::{InputDigest, JobSpec, Package, Plan};

use crate::device::{PartStore, Pruned, PruningEngine, Watch, WorkError, WorkerState};
use crate::grams::{GramKeeper, KeptGrams};
use crate::preparation::JobModel;
use shrunk::shrunk;

pub use measuring::Measuring;
pub use memory::peak_resident;
pub use output::{JobOutput, StoredOutput, WrittenPipeline};

/// Describes a pruned pipeline to people, in files beside its record.
pub trait Describe: Sync {
    /// The documents of a pipeline with this record.
    fn documents(&self, record: &PruningRecord) -> Vec<Document>;

    /// The documents of a pipeline with this record once it was measured: what the dense and the pruned model made of the held-out
    /// prompts. What their pictures show joins the record.
    fn measured(&self, record: &mut PruningRecord, models: Option<[&Denoised; 2]>) -> Vec<Document>;
}

/// Gives the folder of the pipeline that is pruned, with everything that the output gets of it.
pub trait SourceFolder: Sync {
    /// The folder, which may have less in it before.
    ///
    /// # Errors
    /// When the rest cannot be brought here.
    fn whole(&self) -> obsdiff_engine::Result<PathBuf>;
}

/// The texts of held-out prompts, as far as the job knows them: a file of conditioning need not hold the texts, and other encoders may have
/// made it.
pub fn known_texts<'a>(spec: &JobSpec, held_out: &'a [String]) -> &'a [String] {
    let known = spec.calibration.prompts.is_some() || spec.calibration.conditioning.is_none();
    if known { held_out } else { &[] }
}

/// A job as the workers of a process share it.
pub struct PruningJob<'a> {
    /// The job's specification.
    pub spec: &'a JobSpec,
    /// Its model.
    pub model: &'a JobModel,
    /// Where the files lie that the output gets as they are.
    pub source: &'a dyn SourceFolder,
    /// The transformer's weights in their files.
    pub weights: &'a Arc<Weights>,
    /// The plan.
    pub plan: &'a Plan,
    /// Digests of all files that decide the result.
    pub inputs: Vec<InputDigest>,
    /// The trajectories of its prompts.
    pub trajectories: &'a Arc<Trajectories>,
    /// The texts of the held-out prompts, where they are known.
    pub held_out: &'a [String],
    /// Final latents of the dense model on the held-out prompts, where they are known.
    pub dense: Option<&'a Tensor>,
    /// Keeps the job's Grams for later jobs, where the job asks for that.
    pub keeper: Option<GramKeeper>,
    /// The kept Grams that are read in place of calibration, where the job has any.
    pub grams: Option<KeptGrams>,
    /// What the worker needs that exports, where it is to measure what it wrote.
    pub measuring: Option<Measuring<'a>>,
    /// Describes the output to people, in files beside its record.
    pub describe: &'a dyn Describe,
    /// Where the output is written.
    pub output: JobOutput,
    /// Writes the output, where that is a directory.
    pub disk: &'a Disk,
    /// Where blocks are computed, Grams summed, linears solved, and what was written is measured.
    pub device: ComputeDevice,
}

impl<'a> PruningJob<'a> {
    /// The engine of one worker.
    pub fn engine(
        &'a self,
        model: Box<dyn DiffusionModel>,
        part_store: Arc<dyn PartStore>,
        watch: Arc<dyn Watch>,
        worker_state: &Arc<WorkerState>,
    ) -> PruningEngine<'a> {
        let weights = self.weights.clone();
        let pruner = Pruner::new(self.spec, model, weights, self.trajectories.clone())
            .on(self.device.clone())
            .probing_in(self.model.probing_gpu_bytes(self.spec));
        // An export to a slow disk reports progress, so that the worker is not taken for one that hangs.
        let exporting = worker_state.clone();
        let on_progress: Arc<OnProgress> = Arc::new(move || exporting.advance());
        let exporter =
            Box::new(move |pruned, pruner: &mut Pruner| self.export(&pruned, pruner, &on_progress));
        PruningEngine::new(pruner, Arc::new(self.plan.clone()), part_store, watch, exporter)
            .with_grams(self.keeper.clone(), self.grams.clone())
            .reading(self.model.files.clone())
    }

    /// The content of `pruning.json`, and how the export makes the transformer smaller if it does.
    ///
    /// # Errors
    /// When weights or the configuration cannot be read.
    pub fn record(&self, pruned: &Pruned) -> Result<(PruningRecord, Option<Shrink>), WorkError> {
        let structured = self.plan.packages.iter().any(Package::is_structured);
        let (sizes, shrink) = if structured { shrunk(self, &pruned.tensors)? } else { (None, None) };
        let record = PruningRecord {
            obsdiff: env!("CARGO_PKG_VERSION").to_owned(),
            job: self.spec.clone(),
            hardware: if self.spec.workers.mixed_hardware {
                "mixed".to_owned()
            } else {
                self.device.hardware()
            },
            inputs: self.inputs.clone(),
            held_out: self.held_out.to_vec(),
            linears: pruned.linears.clone(),
            structures: pruned.structures.clone(),
            sizes,
            files: Vec::new(),
            measured: None,
        };
        Ok((record, shrink))
    }

    /// Writes the pruned pipeline: pruned tensors as they were solved, all others as they are in the checkpoint.
    fn export(
        &self,
        pruned: &Pruned,
        pruner: &mut Pruner,
        on_progress: &Arc<OnProgress>,
    ) -> Result<(), WorkError> {
        // Here and not earlier: calibration names the site at which a model overflows, but not every method calibrates.
        self.check_finite()?;
        let _span = tracing::info_span!("export").entered();
        let (record, shrink) = self.record(pruned)?;
        let source = self.source.whole()?;
        let documents = self.describe.documents(&record);
        let export = Export {
            source: &source,
            destination: match &self.output {
                JobOutput::Directory(path) => path,
                JobOutput::Objects(output) => output.url(),
            },
            link: self.spec.output.link,
            weights: self.weights,
            read: Some(&self.model.files),
            record: &record,
            documents: &documents,
            shrink: shrink.as_ref(),
        };
        let failed = RefCell::new(None);
        let tensor = |name: &str| {
            on_progress();
            pruned.tensors.tensor(name).map_err(|error| {
                failed.replace(Some(error));
                obsdiff_engine::Error::Interrupted
            })
        };
        let written = match &self.output {
            JobOutput::Directory(_) => export.write(&self.disk.with_progress(on_progress.clone()), &tensor),
            JobOutput::Objects(output) => {
                export.write_objects(&output.with_progress(on_progress.clone()), &tensor)
            }
        };
        written.map_err(|error| failed.take().unwrap_or(WorkError::Engine(error)))?;
        if let Some(measuring) = &self.measuring {
            let expected = pruned.expected_velocity_error;
            let measured = self.measure(measuring, record, expected, pruner, &**on_progress);
            if let Err(error) = measured {
                // The job has its result, and does not fail for what is said of it.
                tracing::warn!(%error, "the written pipeline cannot be measured");
            }
        }
        Ok(())
    }

    /// Refuses a dense model whose latents on the held-out prompts are not finite, because no pruned model can be compared with it.
    fn check_finite(&self) -> obsdiff_engine::Result<()> {
        let Some(latents) = self.dense else { return Ok(()) };
        let numbers = latents.flatten_all().and_then(|l| l.to_dtype(DType::F32)?.to_vec1::<f32>())?;
        if numbers.iter().all(|number| number.is_finite()) {
            return Ok(());
        }
        let problem =
            "computes final latents that are not finite: the model overflows or its weights are damaged";
        Err(obsdiff_engine::Error::Content {
            path: self.weights.folder().to_owned(),
            problem: problem.to_owned(),
        })
    }
}
