//! One site of the shipped pipeline: its exponents, its Gram, and what is reported of its linears.

mod calibrated;
mod reported;

use obsdiff_proto::{LinearTarget, PackageId, ShardId, Target};
use obsdiff_tests::{noise, shipped};
use serde_json::{Value, json};

use super::*;
use crate::calibrate::Encoded;
use crate::pipeline::PipelineFolder;

/// A pruner with two shards of one prompt, and a package of the site that the first linear reads.
struct Case {
    pruner: Pruner,
    package: Package,
    shards: [Shard; 2],
}

impl Case {
    /// `sparsity` and `hessian` are those keys of its job.
    fn new(sparsity: Value, hessian: Value) -> Self {
        let spec: JobSpec = serde_json::from_value(json!({
            "model": { "path": "shapes-sd3" },
            "sparsity": sparsity,
            "hessian": hessian,
            "calibration": { "prompts": "p.txt", "count": 2, "steps": 2, "shard_size": 1 },
            "output": { "path": "out" }
        }))
        .unwrap();
        let folder = PipelineFolder::open(&shipped("shapes-sd3")).unwrap();
        let (config, size) = (folder.transformer_config(), folder.latent_size(Some(32), Some(32)).unwrap());
        let weights = Arc::new(folder.transformer_weights().unwrap());
        let model = config.load(&weights, DType::F32).unwrap();
        let encoders = folder.text_encoders(24).unwrap();
        let (prompts, spool) = (["a red circle", "two birds on a wire"], std::env::temp_dir());
        let encoded = Encoded::new(&encoders, &prompts, DType::F32, &spool, &mut |_, _| {}).unwrap();
        let schedule = folder.schedule(2, size.tokens).unwrap();
        let trajectories = Trajectories::new(schedule, config.guidance(4.0), 0, size, encoded);
        let inventory = model.inventory();
        let (linear, target) = (LinearId(0), Target::Unstructured { ratio: spec.sparsity.ratio.unwrap() });
        let package = Package {
            id: PackageId(0),
            units: 0..1,
            sites: vec![inventory.linear(linear).site],
            linears: vec![LinearTarget { linear, target }],
            survey: false,
        };
        let shards = [0, 1].map(|i| Shard { id: ShardId(i), prompts: i..i + 1 });
        Self { pruner: Pruner::new(&spec, model, weights, Arc::new(trajectories)), package, shards }
    }

    fn site(&self) -> SiteId {
        self.package.sites[0]
    }

    fn open(&mut self, exponent: i32) {
        let exponents = [(self.site(), exponent)].into();
        self.pruner.open(&self.package, &exponents).unwrap();
    }

    /// Calibrates on one of the shards.
    fn calibrate(&mut self, shard: usize) -> Result<()> {
        self.pruner.calibrate(&self.shards[shard], &mut |_| Ok(()))
    }

    /// Rows and columns of the linear.
    fn shape(&self) -> (usize, usize) {
        let inventory = self.pruner.model().inventory();
        let linear = inventory.linear(LinearId(0));
        (linear.rows, inventory.site(linear.site).width)
    }
}
