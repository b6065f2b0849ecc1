//! Jobs of the simulation, and the store that outlives its coordinators.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use obsdiff_coordinator::Records;
use obsdiff_core::{Exponents, Job, Manifest, Options, StoredSums};
use obsdiff_proto::message::{PartId, Receipt, SavedSums};
use obsdiff_proto::session::Briefing;
use obsdiff_proto::{
    Budget, Features, Inventory, JobSpec, Linear, LinearId, LinearTarget, Package, PackageId, PartKind, Plan,
    Shard, ShardId, Site, SiteId, Stream, StreamId, Structure, Target,
};
use obsdiff_store::SumsRecord;
use obsdiff_tests::Prng;
use obsdiff_worker::device::{MemoryPartStore, PartStore};
use tokio::time::sleep;

/// How large a job is; jobs of one shape have one result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Shape {
    packages: u32,
    shards: u32,
    /// Sites are split by rows.
    split: bool,
    /// The two sites of a package are one structure, and what goes of each is found out by a survey.
    budget: bool,
}

impl Shape {
    pub(crate) fn draw(rng: &mut Prng) -> Self {
        let (packages, shards) = (rng.within(1..4) as u32, rng.within(3..8) as u32);
        Self { packages, shards, split: rng.once_in(3), budget: false }
    }

    /// The same job with a budget.
    pub(crate) fn with_budget(self) -> Self {
        Self { budget: true, ..self }
    }

    /// Packages of two sites of two linears each.
    pub(crate) fn inventory(&self) -> Inventory {
        let site = |i: u32| Site {
            name: format!("l{}", 2 * i),
            width: 4,
            stream: StreamId(0),
            joined: Vec::new(),
            linears: vec![LinearId(2 * i), LinearId(2 * i + 1)],
        };
        let linear = |i: u32| Linear { name: format!("l{i}"), rows: 8, bias: true, site: SiteId(i / 2) };
        let structure = |i: u32| Structure {
            name: format!("s{i}"),
            block: i,
            kind: PartKind::Heads,
            count: 2,
            outputs: (4 * i..4 * i + 4).map(|id| Features::whole(LinearId(id), 2)).collect(),
            inputs: Vec::new(),
        };
        let structures = if self.budget { self.packages } else { 0 };
        Inventory {
            streams: vec![Stream::new("image", 1, false)],
            sites: (0..2 * self.packages).map(site).collect(),
            linears: (0..4 * self.packages).map(linear).collect(),
            structures: (0..structures).map(structure).collect(),
            ..Inventory::default()
        }
    }

    pub(crate) fn plan(&self) -> Plan {
        let target =
            if self.budget { Target::Structured { ratio: None } } else { Target::NToM { n: 2, m: 4 } };
        let target = |i: u32| LinearTarget { linear: LinearId(i), target };
        let package = |i: u32| Package {
            id: PackageId(i),
            units: 0..0,
            sites: vec![SiteId(2 * i), SiteId(2 * i + 1)],
            linears: (4 * i..4 * i + 4).map(target).collect(),
            survey: false,
        };
        let shard = |i: u32| Shard { id: ShardId(i), prompts: 4 * i..4 * i + 4 };
        let plan = Plan {
            packages: (0..self.packages).map(package).collect(),
            shards: (0..self.shards).map(shard).collect(),
            budget: None,
        };
        let part_flops = vec![1.0; self.packages as usize];
        if self.budget { plan.with_budget(Budget { saving: 1.0, part_flops }) } else { plan }
    }

    pub(crate) fn options(&self) -> Options {
        // A part has 4 rows of the 16 of a site.
        Options { split_above: self.split.then_some(4 * 4 * (4 + 4)), ..Options::default() }
    }

    /// What workers get.
    pub(crate) fn briefing(&self) -> Briefing {
        let spec = serde_json::json!({
            "model": { "path": "pipeline" },
            "sparsity": { "pattern": "2:4" },
            "calibration": { "prompts": "prompts.txt" },
            "output": { "path": "out" },
        });
        let spec: JobSpec = serde_json::from_value(spec).unwrap();
        let (inventory, plan) = (self.inventory(), self.plan());
        Briefing { spec, inventory, plan, inputs: Vec::new(), store: "memory".to_owned() }
    }
}

/// The weights of a package's parts.
pub(crate) type Weights = BTreeMap<PartId, Vec<u8>>;

/// A job's store. Clones are the same one.
#[derive(Clone, Default)]
pub(crate) struct Store {
    pub(crate) part_store: MemoryPartStore,
    saved: Arc<Mutex<Saved>>,
}

#[derive(Default)]
struct Saved {
    lives: u32,
    committed: u32,
    exponents: Option<Exponents>,
    hardware: Option<String>,
    down: bool,
}

impl Store {
    /// The job as far as it is, for its next coordinator.
    pub(crate) fn begin(&self, inventory: Arc<Inventory>, plan: Arc<Plan>, options: Options) -> Job {
        let mut saved = self.saved.lock().unwrap();
        let life = saved.lives;
        saved.lives += 1;
        Job {
            inventory,
            plan,
            committed: saved.committed,
            exponents: saved.exponents.clone(),
            hardware: saved.hardware.clone(),
            saved: self.part_store.saved_sums().into_iter().map(stored).collect(),
            life,
            options,
        }
    }

    /// Whether it fails for now.
    pub(crate) fn fail(&self, down: bool) {
        self.saved.lock().unwrap().down = down;
    }

    pub(crate) fn check(&self) -> Result<(), String> {
        if self.saved.lock().unwrap().down { Err("the store is away".to_owned()) } else { Ok(()) }
    }

    /// All that is committed.
    pub(crate) fn committed(&self) -> Vec<Weights> {
        let packages = self.saved.lock().unwrap().committed;
        let weights = |package| {
            let parts = self.part_store.manifest(PackageId(package)).unwrap();
            parts
                .iter()
                .map(|(part, receipt)| (*part, self.part_store.get(receipt).unwrap().to_vec()))
                .collect()
        };
        (0..packages).map(weights).collect()
    }
}

/// Saved sums as the core takes them.
fn stored((receipt, record): (Receipt, SumsRecord)) -> StoredSums {
    let SumsRecord { package, exponents, shards, .. } = record;
    StoredSums { package, exponents, saved: Arc::new(SavedSums { shards, receipt }) }
}

/// The store, as the coordinator writes it: slowly, and at times in vain.
pub(crate) struct SlowRecords {
    pub(crate) store: Store,
    pub(crate) rng: Mutex<Prng>,
}

impl SlowRecords {
    async fn wait(&self) {
        let wait = self.rng.lock().unwrap().within(1..80);
        sleep(Duration::from_millis(wait)).await;
    }
}

#[tonic::async_trait]
impl Records for SlowRecords {
    async fn successor(&self) -> Result<Option<u32>, String> {
        Ok(None)
    }

    async fn commit(&self, manifest: &Manifest) -> Result<(), String> {
        self.wait().await;
        let before = self.store.check();
        if before.is_err() && self.rng.lock().unwrap().once_in(2) {
            return before;
        }
        self.store.part_store.commit(manifest.package, manifest.parts.clone());
        {
            let mut saved = self.store.saved.lock().unwrap();
            saved.committed = saved.committed.max(manifest.package.0 + 1);
            saved.exponents.get_or_insert_with(|| manifest.exponents.clone());
        }
        // What is durable by now may still be reported as a failure.
        self.wait().await;
        self.store.check().and(before)
    }

    async fn save(&self, exponents: &Exponents) -> Result<(), String> {
        self.wait().await;
        self.store.check()?;
        self.store.saved.lock().unwrap().exponents = Some(exponents.clone());
        Ok(())
    }

    async fn forget_sums(&self) -> Result<(), String> {
        self.wait().await;
        self.store.check()?;
        self.store.part_store.remove_all_sums();
        Ok(())
    }

    async fn save_hardware(&self, hardware: &str) -> Result<(), String> {
        self.wait().await;
        self.store.check()?;
        self.store.saved.lock().unwrap().hardware = Some(hardware.to_owned());
        Ok(())
    }
}
