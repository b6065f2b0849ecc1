//! What `obsdiff plan` says about a job, as text or JSON.

use std::fmt;
use std::time::Duration;

use obsdiff_core::{PackageCost, Tokens};
use obsdiff_proto::{ByteSize, Inventory, JobSpec, Method, Package, Pattern, Plan, counted};
use serde::Serialize;

use super::counts::PackageCount;
use super::device_memory::DeviceMemoryReport;
use super::plan_times::PredictedTimes;
use super::whole_model::WholeModel;
use crate::machine::MachineRates;
use crate::shares::ProductShares;
use crate::text::{self, Table};

/// The device that is named where it is no GPU.
const PROCESSOR: &str = "this machine's processor";

/// A job's plan; `--json` prints it as it is here. What is absent is not known from what the command was given.
#[derive(Serialize)]
pub(super) struct PlanReport {
    /// The device that was measured for all times: that of `--device`.
    pub(super) device: Option<String>,
    pub(super) job: JobSpec,
    pub(super) model: ModelSize,
    pub(super) packages: Vec<PackageReport>,
    /// All packages together; of the Grams the largest package's, which is all that is held at once.
    pub(super) total: CostReport,
    /// The memory of one worker.
    pub(super) memory: Option<MemoryReport>,
    /// The memory of its GPU, with `--device-memory`.
    pub(super) device_memory: Option<DeviceMemoryReport>,
    pub(super) conditioning: Option<ConditioningReport>,
    pub(super) traffic: Traffic,
    /// Where the job calibrates.
    pub(super) whole_model: Option<WholeModel>,
    pub(super) other_package_counts: Vec<PackageCount>,
    /// By which the times of other numbers of packages are predicted.
    pub(super) rates: Option<RateReport>,
    /// With `--workers`.
    pub(super) times: Option<PredictedTimes>,
    /// What is unusual about the prompts.
    pub(super) note: Option<String>,
}

/// How large a model is.
#[derive(Serialize)]
pub(super) struct ModelSize {
    pub(super) parameters: u64,
    /// Of them, those of linears that can be pruned.
    pub(super) prunable_parameters: u64,
    pub(super) units: usize,
    pub(super) linears: usize,
    /// Of one picture.
    pub(super) image_tokens: u64,
    /// Of one prompt.
    pub(super) text_tokens: u64,
}

impl ModelSize {
    pub(super) fn new(inventory: &Inventory, tokens: Tokens) -> Self {
        Self {
            parameters: inventory.parameters,
            prunable_parameters: inventory.linears.iter().map(|linear| inventory.parameters_of(linear)).sum(),
            units: inventory.units.len(),
            linears: inventory.linears.len(),
            image_tokens: tokens.image,
            text_tokens: tokens.text,
        }
    }
}

/// A package. Packages and units are counted from 0, as in `pruning.json`; text counts them from 1.
#[derive(Serialize)]
pub(super) struct PackageReport {
    package: u32,
    /// It measures what pruning would cost, and prunes nothing.
    survey: bool,
    first_unit: usize,
    last_unit: usize,
    #[serde(flatten)]
    cost: CostReport,
}

/// What packages cost.
#[derive(Serialize)]
pub(super) struct CostReport {
    sites: usize,
    linears: usize,
    weights: u64,
    gram_bytes: u64,
    /// Forward passes, counted per picture.
    passes: u64,
    forward_flops: f64,
    gram_flops: f64,
    solve_flops: f64,
}

impl CostReport {
    pub(super) fn new(cost: &PackageCost, gram_bytes: u64) -> Self {
        Self {
            sites: cost.sites,
            linears: cost.linears,
            weights: cost.weights,
            gram_bytes,
            passes: cost.passes,
            forward_flops: cost.forward_flops,
            gram_flops: cost.gram_flops,
            solve_flops: cost.solve_flops,
        }
    }

    /// What a package is of.
    fn contents(&self, name: String, units: String) -> [String; 7] {
        [
            name,
            units,
            self.sites.to_string(),
            self.linears.to_string(),
            text::count(self.weights),
            ByteSize(self.gram_bytes).to_string(),
            self.passes.to_string(),
        ]
    }

    /// Its arithmetic.
    fn work(&self, name: String) -> [String; 4] {
        [name, text::flops(self.forward_flops), text::flops(self.gram_flops), text::flops(self.solve_flops)]
    }
}

/// What a device was measured to reach, and which shares of that each kind of work is expected to reach.
#[derive(Serialize)]
pub(super) struct RateReport {
    forward_flops_per_second: f64,
    solve_flops_per_second: f64,
    shares: ProductShares,
}

impl RateReport {
    pub(super) const fn new(machine: &MachineRates, shares: ProductShares) -> Self {
        Self { forward_flops_per_second: machine.forward, solve_flops_per_second: machine.products, shares }
    }
}

impl fmt::Display for RateReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [forward, solve] = [self.forward_flops_per_second, self.solve_flops_per_second].map(text::flops);
        write!(
            f,
            "Its products run at {forward} a second in forward calls and Grams, at\n{solve} in solving. Of these rates {}",
            self.shares
        )
    }
}

/// Each package of a plan, with what it costs.
pub(super) fn packages(plan: &Plan, costs: &[PackageCost]) -> Vec<PackageReport> {
    let package = |(package, cost): (&Package, &PackageCost)| PackageReport {
        package: package.id.0,
        survey: package.survey,
        first_unit: package.units.start,
        last_unit: package.units.end.saturating_sub(1),
        cost: CostReport::new(cost, cost.gram_bytes),
    };
    plan.packages.iter().zip(costs).map(package).collect()
}

/// The predicted peak of a worker's memory, and its parts.
#[derive(Serialize)]
pub(super) struct MemoryReport {
    /// How many workers `obsdiff run` takes on this machine, and the peak with all of them.
    pub(super) run_workers: usize,
    pub(super) run_peak_bytes: u64,
    pub(super) peak_bytes: u64,
    pub(super) transformer_bytes: u64,
    pub(super) prompts_bytes: u64,
    pub(super) grams_bytes: u64,
    pub(super) activations_bytes: u64,
    pub(super) solver_bytes: u64,
    pub(super) program_bytes: u64,
}

/// What the conditioning of all prompts takes, and where it lies.
#[derive(Serialize)]
pub(super) struct ConditioningReport {
    /// Besides the empty one.
    pub(super) prompts: usize,
    pub(super) bytes: u64,
    pub(super) location: String,
    /// The file it is taken from; it is encoded where absent.
    pub(super) file: Option<String>,
    /// What each worker reads at a time; all of it is kept in memory where absent.
    pub(super) shard_bytes: Option<u64>,
}

/// What each worker past the first sends and takes.
#[derive(Serialize)]
pub(super) struct Traffic {
    pub(super) sent_gram_bytes: u64,
    pub(super) taken_weight_bytes: u64,
}

impl fmt::Display for PlanReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.summary(f)?;
        let [contents, work] = self.tables();
        writeln!(f, "\n{contents}\n{work}")?;
        if let Some(memory) = &self.memory {
            write!(f, "{memory}")?;
        }
        if let Some(memory) = &self.device_memory {
            write!(f, "{memory}")?;
        }
        if let Some(conditioning) = &self.conditioning {
            writeln!(f, "{conditioning}")?;
        }
        write!(f, "{}", self.traffic)?;
        if let Some(whole_model) = &self.whole_model {
            write!(f, "\n{whole_model}")?;
        }
        if !self.other_package_counts.is_empty() {
            let device = match self.device.as_deref() {
                None | Some("cpu") => PROCESSOR,
                Some(gpu) => gpu,
            };
            writeln!(f, "\n\nOther numbers of packages, with the time of computing on {device}:")?;
            write!(f, "{}", PackageCount::table(&self.other_package_counts).to_string().trim_end())?;
            if let (Some(rates), true) = (&self.rates, device != PROCESSOR) {
                write!(f, "\n{rates}")?;
            }
        }
        if let Some(times) = &self.times {
            write!(f, "\n\n{times}")?;
        }
        self.note.as_ref().map_or(Ok(()), |note| write!(f, "\nNote: {note}"))
    }
}

impl PlanReport {
    /// What each package is of, and its arithmetic: two tables, each of which fits 80 columns.
    fn tables(&self) -> [Table; 2] {
        let mut contents = Table::new(["package", "units", "sites", "linears", "weights", "Grams", "passes"]);
        let mut work = Table::new(["package", "forward", "Gram work", "solving"]);
        for package in &self.packages {
            let units = if package.first_unit == package.last_unit {
                (package.last_unit + 1).to_string()
            } else {
                format!("{}-{}", package.first_unit + 1, package.last_unit + 1)
            };
            let what = if package.survey { " (survey)" } else { "" };
            let name = format!("{}{what}", package.package + 1);
            contents.row(package.cost.contents(name.clone(), units));
            work.row(package.cost.work(name));
        }
        contents.rule();
        work.rule();
        let units = self.packages.last().map_or(0, |package| package.last_unit + 1);
        contents.row(self.pruned().contents("all".to_owned(), units.to_string()));
        work.row(self.total.work("all".to_owned()));
        [contents, work]
    }

    /// What all packages are of, each site and linear once: surveys look at those that later packages prune.
    fn pruned(&self) -> CostReport {
        let pruning = || self.packages.iter().filter(|package| !package.survey).map(|package| &package.cost);
        CostReport {
            sites: pruning().map(|cost| cost.sites).sum(),
            linears: pruning().map(|cost| cost.linears).sum(),
            weights: pruning().map(|cost| cost.weights).sum(),
            ..self.total
        }
    }

    fn summary(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (spec, model) = (&self.job, &self.model);
        let method = spec.sparsity.method().name();
        let refined = match spec.sparsity.refinement() {
            0 => String::new(),
            steps => format!(", refined by {}", counted(steps as usize, "step")),
        };
        writeln!(
            f,
            "model        {} ({} parameters, {} of them in what can be pruned: {}, {})",
            spec.model.path,
            text::count(model.parameters),
            text::percent(model.prunable_parameters, model.parameters),
            counted(model.units, "unit"),
            counted(model.linears, "linear"),
        )?;
        writeln!(f, "sparsity     {} by {method}{refined}", share(spec))?;
        let c = &spec.calibration;
        if let Some(grams) = &c.grams {
            writeln!(f, "calibration  none, by the Grams kept in {grams}")
        } else if spec.sparsity.calibrates() {
            writeln!(
                f,
                "calibration  {} x {} at guidance {}, {} image and {} text tokens",
                counted(c.count as usize, "prompt"),
                counted(c.steps as usize, "step"),
                c.guidance,
                model.image_tokens,
                model.text_tokens
            )
        } else if spec.sparsity.method() == Method::Magnitude {
            writeln!(f, "calibration  none, magnitude without refinement needs no activations")
        } else {
            writeln!(f, "calibration  none, {method} needs no activations")
        }
    }
}

/// What goes.
fn share(spec: &JobSpec) -> String {
    match (spec.sparsity.pattern, spec.sparsity.ratio) {
        (Pattern::Unstructured, Some(ratio)) if spec.sparsity.surveys_linears() => {
            format!("{}% unstructured, of each linear as much as costs least over the model,", ratio * 100.0)
        }
        (Pattern::Unstructured, Some(ratio)) => format!("{}% unstructured", ratio * 100.0),
        (Pattern::NToM { .. }, _) if spec.sparsity.dense > 0.0 => {
            format!("{} but for {}% of the weights", spec.sparsity.pattern, spec.sparsity.dense * 100.0)
        }
        (Pattern::Structured, Some(ratio)) => format!("{}% of each block's heads and neurons", ratio * 100.0),
        (Pattern::Structured, None) => {
            let budget = spec.sparsity.budget.unwrap_or(0.0);
            format!("heads and neurons worth {}% of a forward call", budget * 100.0)
        }
        (pattern, _) => pattern.to_string(),
    }
}

impl fmt::Display for MemoryReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = [
            (self.transformer_bytes, "transformer"),
            (self.prompts_bytes, "encoded prompts"),
            (self.grams_bytes, "Grams of the largest package"),
            (self.activations_bytes, "activations"),
            (self.solver_bytes, "solver"),
            (self.program_bytes, "program"),
        ];
        let parts = parts.map(|(bytes, what)| format!("{} {what}", ByteSize(bytes)));
        writeln!(f, "Peak memory, predicted: {}\n  ({})", ByteSize(self.peak_bytes), parts.join(", "))?;
        if self.run_workers > 1 {
            let (workers, peak) = (self.run_workers, ByteSize(self.run_peak_bytes));
            writeln!(
                f,
                "  or {peak} with {workers} workers, which `obsdiff run` takes for so small a model"
            )?;
        }
        Ok(())
    }
}

impl fmt::Display for ConditioningReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let made = match &self.file {
            Some(file) => format!("taken from {file}"),
            None => "encoded once".to_owned(),
        };
        let read = match self.shard_bytes {
            Some(bytes) => format!("of which each worker reads {} at a time", ByteSize(bytes)),
            None => "kept in memory by each worker".to_owned(),
        };
        write!(
            f,
            "Conditioning of {} and the empty one: {} in {}, {made}, {read}",
            counted(self.prompts, "prompt"),
            ByteSize(self.bytes),
            self.location
        )
    }
}

impl fmt::Display for Traffic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Traffic of each worker past the first: {} of Grams sent, {} of weights taken",
            ByteSize(self.sent_gram_bytes),
            ByteSize(self.taken_weight_bytes)
        )
    }
}

/// Seconds as text, whatever they were computed to be.
pub(super) fn duration(seconds: f64) -> String {
    text::duration(Duration::from_secs_f64(seconds.clamp(0.0, 1e12)))
}
