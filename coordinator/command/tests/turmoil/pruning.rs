//! The engine proper in the simulation: a small transformer with random weights is truly pruned while hosts come and go.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;
use std::sync::{Arc, Mutex};

use candle_core::{DType, Tensor};
use obsdiff_core::assignment::SolveCost;
use obsdiff_core::{Options, Tokens, plan};
use obsdiff_engine::architecture::sd3::{Sd3Config, Sd3Transformer};
use obsdiff_engine::calibrate::{Encoded, Trajectories};
use obsdiff_engine::checkpoint::Weights;
use obsdiff_engine::pipeline::{Conditioning, LatentSize, PipelineFolder, noise};
use obsdiff_engine::pruner::Pruner;
use obsdiff_proto::message::{Exponents, Opening, Part, Receipt, SavedSums, Solved};
use obsdiff_proto::{Budget, Inventory, JobSpec, PackageId, Plan, ShardId, SiteId};
use obsdiff_store::{SavedGram, SumsRecord};
use obsdiff_worker::collective::Collective;
use obsdiff_worker::device::{
    AfterStep, CallHook, Engine, EngineCall, PartStore, Pruned, PruningEngine, Reducer, Watch, WorkError,
};
use serde_json::{Value, json};

/// Text tokens of a prompt.
const TEXT: usize = 5;
/// A picture of 2 x 2 image tokens.
const SIZE: LatentSize = LatentSize { channels: 4, height: 4, width: 4, tokens: 4 };

/// A job on a small model, with all that its workers need to do it.
pub(crate) struct Pruning {
    spec: JobSpec,
    pub(crate) inventory: Arc<Inventory>,
    pub(crate) plan: Arc<Plan>,
    model: Sd3Transformer,
    weights: Arc<Weights>,
    trajectories: Arc<Trajectories>,
    /// Holds the weights, which are read when they are needed.
    _folder: tempfile::TempDir,
}

impl Pruning {
    /// A job with this `[sparsity]` and so many packages.
    pub(crate) fn new(sparsity: Value, packages: u32) -> Arc<Self> {
        let spec: JobSpec = serde_json::from_value(json!({
            "model": { "path": "pipeline" },
            "sparsity": sparsity,
            "calibration": { "prompts": "prompts.txt", "count": 5, "steps": 3, "guidance": 4.0, "shard_size": 1 },
            "packages": { "count": packages },
            "output": { "path": "out" },
        }))
        .unwrap();
        spec.validate().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let config = config(folder.path());
        let inventory = config.inventory();
        let mut plan = plan(&spec, &inventory, Tokens { image: 4, text: TEXT as u64, branches: 2 }).unwrap();
        if spec.sparsity.budget.is_some() {
            let part_flops = vec![1.0; inventory.structures.len()];
            plan = plan.with_budget(Budget { saving: 9.0, part_flops });
        }
        if spec.sparsity.surveys_linears() {
            plan = plan.with_surveys();
        }
        let file = folder.path().join("weights.safetensors");
        candle_core::safetensors::save(&weights(&config), &file).unwrap();
        let weights = Weights::open_file(&file).unwrap();
        let text = noise(1, &[TEXT, config.joint_attention_dim]).unwrap();
        let pooled = noise(2, &[config.pooled_projection_dim]).unwrap();
        let encoded = Encoded::repeated(Conditioning { text, pooled }, spec.calibration.count).unwrap();
        let asset = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/assets/shapes-sd3");
        let pipeline = PipelineFolder::open(&asset).unwrap();
        let schedule = pipeline.schedule(spec.calibration.steps as usize, SIZE.tokens).unwrap();
        let guidance = pipeline.transformer_config().guidance(spec.calibration.guidance);
        let trajectories = Trajectories::new(schedule, guidance, 0, SIZE, encoded);
        Arc::new(Self {
            model: Sd3Transformer::load(config, &weights, DType::F32).unwrap(),
            weights: Arc::new(weights),
            inventory: Arc::new(inventory),
            plan: Arc::new(plan),
            trajectories: Arc::new(trajectories),
            spec,
            _folder: folder,
        })
    }

    pub(crate) fn options(&self) -> Options {
        Options { solving: SolveCost::of(&self.spec.sparsity), ..Options::default() }
    }

    /// An engine on the dense model; `hook` decides how long its work takes. What an export writes goes to `written`.
    pub(crate) fn engine(
        &self,
        part_store: Arc<dyn PartStore>,
        hook: CallHook,
        written: Arc<Mutex<Option<Vec<u8>>>>,
    ) -> Box<dyn Engine> {
        let (model, weights) = (Box::new(self.model.clone()), self.weights.clone());
        let pruner = Pruner::new(&self.spec, model, weights, self.trajectories.clone());
        let plan = self.plan.clone();
        let names: Vec<String> = self.weights.entries().map(|(name, _)| name.to_owned()).collect();
        let exporter = Box::new(move |pruned: Pruned, _: &mut Pruner| {
            let mut bytes = format!("{:?} {:?}", pruned.linears, pruned.structures).into_bytes();
            for name in &names {
                if let Some(tensor) = pruned.tensors.tensor(name)? {
                    tensor.write_bytes(&mut bytes).unwrap();
                }
            }
            *written.lock().unwrap() = Some(bytes);
            Ok(())
        });
        let engine = PruningEngine::new(pruner, plan, part_store, Arc::new(NoWatch), exporter);
        Box::new(TimedEngine { engine, hook })
    }
}

/// Three blocks: of structures, only those of the one in the middle go.
fn config(folder: &Path) -> Sd3Config {
    let keys = json!({
        "_class_name": "SD3Transformer2DModel", "attention_head_dim": 4, "caption_projection_dim": 16,
        "dual_attention_layers": [], "in_channels": 4, "joint_attention_dim": 12, "num_attention_heads": 4,
        "num_layers": 3, "out_channels": 4, "patch_size": 2, "pooled_projection_dim": 12, "pos_embed_max_size": 8,
        "qk_norm": "rms_norm", "sample_size": 8,
    });
    std::fs::write(folder.join("config.json"), keys.to_string()).unwrap();
    Sd3Config::read(folder).unwrap()
}

fn weights(config: &Sd3Config) -> HashMap<String, Tensor> {
    let tensor = |(seed, (name, shape)): (u64, (String, Vec<usize>))| {
        let numbers = (noise(seed, &shape).unwrap() * 0.2).unwrap();
        (name, numbers)
    };
    (3..).zip(config.shapes()).map(tensor).collect()
}

/// Nobody watches.
struct NoWatch;

impl Watch for NoWatch {
    fn steps(&self, _: u64) {}
    fn solved(&self, _: u64) {}
    fn expected(&self, _: f64) {}
}

/// An engine whose work takes simulated time.
struct TimedEngine {
    engine: PruningEngine<'static>,
    hook: CallHook,
}

/// The same of what sums its Grams.
struct TimedReducer {
    reducer: Box<dyn Reducer>,
    hook: CallHook,
}

impl Engine for TimedEngine {
    fn pilot(&mut self, shard: ShardId, step: AfterStep<'_>) -> Result<Exponents, WorkError> {
        (self.hook)(EngineCall::Shard(shard))?;
        self.engine.pilot(shard, step)
    }

    fn open(&mut self, opening: &Opening) -> Result<(), WorkError> {
        self.engine.open(opening)
    }

    fn read(&mut self, shard: ShardId) -> Result<(), WorkError> {
        self.engine.read(shard)
    }

    fn calibrate(&mut self, shard: ShardId, step: AfterStep<'_>) -> Result<(), WorkError> {
        (self.hook)(EngineCall::Shard(shard))?;
        self.engine.calibrate(shard, step)
    }

    fn save(
        &mut self,
        save: &str,
        shards: &BTreeSet<ShardId>,
        step: AfterStep<'_>,
    ) -> Result<Option<Receipt>, WorkError> {
        (self.hook)(EngineCall::Save)?;
        self.engine.save(save, shards, step)
    }

    fn check_saved(&mut self, saved: &SavedSums) -> Result<SumsRecord, WorkError> {
        (self.hook)(EngineCall::Restore)?;
        self.engine.check_saved(saved)
    }

    fn restore(&mut self, gram: &SavedGram) -> Result<(), WorkError> {
        (self.hook)(EngineCall::Restore)?;
        self.engine.restore(gram)
    }

    fn forget(&mut self, saved: &Receipt) {
        self.engine.forget(saved);
    }

    fn reducer(&mut self, adds: bool) -> Box<dyn Reducer> {
        Box::new(TimedReducer { reducer: self.engine.reducer(adds), hook: self.hook.clone() })
    }

    fn release(&mut self) {
        self.engine.release();
    }

    fn solve(&mut self, part: &Part, step: AfterStep<'_>) -> Result<Solved, WorkError> {
        (self.hook)(EngineCall::Solve(part.id))?;
        self.engine.solve(part, step)
    }

    fn keeps_sums(&self, packages: u32) -> bool {
        self.engine.keeps_sums(packages)
    }

    fn apply(&mut self, packages: u32, step: AfterStep<'_>) -> Result<(), WorkError> {
        (self.hook)(EngineCall::Apply(PackageId(packages.saturating_sub(1))))?;
        self.engine.apply(packages, step)
    }

    fn export(&mut self, step: AfterStep<'_>) -> Result<(), WorkError> {
        (self.hook)(EngineCall::Export)?;
        self.engine.export(step)
    }
}

impl Reducer for TimedReducer {
    fn reduce(
        &mut self,
        site: SiteId,
        roots: &[usize],
        group: &mut dyn Collective,
    ) -> Result<bool, WorkError> {
        (self.hook)(EngineCall::Reduce(site))?;
        self.reducer.reduce(site, roots, group)
    }
}
