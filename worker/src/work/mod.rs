//! A job at work: the engine of each worker, and the export of what they pruned.

mod measuring;
mod memory;
mod shrunk;

use std::cell::RefCell;
use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Tensor};
use obsdiff_engine::calibrate::Trajectories;
use obsdiff_engine::checkpoint::Weights;
use obsdiff_engine::device::ComputeDevice;
use obsdiff_engine::export::{Export, PruningRecord, Shrink};
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

/// What the workers of a process share.
pub struct Work<'a> {
    /// The job's specification.
    pub spec: &'a JobSpec,
    /// Its model.
    pub model: &'a JobModel,
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
    /// Keeps the job's Grams, where they outlive it.
    pub keeper: Option<GramKeeper>,
    /// The Grams that the job goes by, where it does not calibrate.
    pub grams: Option<KeptGrams>,
    /// What the worker needs that exports, where it is to measure what it wrote.
    pub measuring: Option<Measuring<'a>>,
    /// What the output is written by.
    pub disk: &'a Disk,
    /// Where Grams are summed and alternating directions are made.
    pub device: ComputeDevice,
}

impl<'a> Work<'a> {
    /// The engine of one worker.
    pub fn engine(
        &'a self,
        model: Box<dyn DiffusionModel>,
        part_store: Arc<dyn PartStore>,
        watch: Arc<dyn Watch>,
        worker_state: &Arc<WorkerState>,
    ) -> PruningEngine<'a> {
        let weights = self.weights.clone();
        let pruner =
            Pruner::new(self.spec, model, weights, self.trajectories.clone()).on(self.device.clone());
        // An export on a slow disk is not taken for a worker that hangs.
        let its = worker_state.clone();
        let on_progress: Arc<OnProgress> = Arc::new(move || its.advance());
        let exporter = Box::new(move |pruned| self.export(&pruned, &on_progress));
        PruningEngine::new(pruner, Arc::new(self.plan.clone()), part_store, watch, exporter)
            .with_grams(self.keeper.clone(), self.grams.clone())
    }

    /// The content of `pruning.json`, and how the transformer gets smaller where it does.
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
            measured: None,
        };
        Ok((record, shrink))
    }

    /// Writes the pruned pipeline: what was pruned as it was solved, all else as it is in the checkpoint.
    fn export(&self, pruned: &Pruned, on_progress: &Arc<OnProgress>) -> Result<(), WorkError> {
        // Only here: calibration names the site at which a model overflows, but not every method calibrates.
        self.check_finite()?;
        let _span = tracing::info_span!("export").entered();
        let (record, shrink) = self.record(pruned)?;
        let export = Export {
            source: self.model.pipeline.path(),
            destination: Path::new(&self.spec.output.path),
            link: self.spec.output.link,
            weights: self.weights,
            record: &record,
            shrink: shrink.as_ref(),
        };
        let failed = RefCell::new(None);
        let written = export.write(&self.disk.telling(on_progress.clone()), &|name| {
            on_progress();
            pruned.tensors.tensor(name).map_err(|error| {
                failed.replace(Some(error));
                obsdiff_engine::Error::Interrupted
            })
        });
        written.map_err(|error| failed.take().unwrap_or(WorkError::Engine(error)))?;
        if let Some(measuring) = &self.measuring {
            let measured = self.measure(measuring, record, pruned.expected_velocity_error, &**on_progress);
            if let Err(error) = measured {
                // The job has its result, and does not fail for what is said of it.
                tracing::warn!(%error, "the written pipeline cannot be measured");
            }
        }
        Ok(())
    }

    /// Refuses a dense model whose latents on the held-out prompts are not finite: no pruned one can be compared with it.
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
