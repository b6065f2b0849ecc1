//! `obsdiff plan JOB`.

use std::time::Duration;

use obsdiff_core::cost::{self, Cluster, GramTotals, PackageTimes, PredictionInputs};
use obsdiff_core::{MemoryNeeds, Options, PackageCost, PlanCost, Tokens, packages_within};
use obsdiff_proto::{ByteSize, Inventory, JobSpec, Method, Pattern, Plan};

use obsdiff_worker::conditioning::ConditioningFile;

use super::counts::counts;
use super::plan_sizes;
use crate::budget::with_surveys;
use crate::cli::PlanArgs;
use crate::clock::Clock;
use crate::context::CommandContext;
use crate::described::Described;
use crate::job::JobFile;
use crate::machine::MachineRates;
use crate::prompts::JobPrompts;
use crate::run::location;
use crate::text::{self, Table};
use crate::{Result, conditioning, fit, rates};

/// Of a network of 10 Gbit a second.
const BANDWIDTH: ByteSize = ByteSize(1_000_000_000);

/// Shows what a job would do and cost, and whether it fits the worker's memory.
///
/// # Errors
/// All that `run` would refuse before its work. A job that does not fit is refused after its plan is shown, which says what would fit.
pub(super) fn plan(args: &PlanArgs, context: &mut CommandContext<'_>) -> Result<()> {
    if plan_sizes::is_config(&args.job.job) {
        return plan_sizes::plan(args, context);
    }
    context.use_threads(args.threads)?;
    let job = context.job(&args.job)?;
    let conditioning = conditioning::open(&job)?;
    let prompts = JobPrompts::load(&job, conditioning.as_ref())?;
    let described = Described::read(&job, conditioning.as_ref().map(ConditioningFile::text_tokens))?;
    conditioning::check(&job, conditioning.as_ref(), &described, &prompts)?;
    let spec = &job.spec;
    let bare = described.plan(&job)?;
    let plan = with_surveys(&job, &described, bare.clone())?;
    let cost = described.cost(spec, &plan);
    write!(
        context.out,
        "{}\n{}\n",
        summary(spec, &described.inventory, described.tokens),
        table(&plan, &cost)
    )?;
    write!(context.out, "{}", memory(&described.memory(spec, &plan), &cost))?;
    writeln!(context.out, "{}", of_conditioning(&job, &described, &prompts))?;
    write!(context.out, "{}", traffic(&cost))?;
    if spec.sparsity.calibrates() {
        let flops = described.forward_flops(&*described.config);
        write!(context.out, "{}", whole_model(&job, &described.inventory, described.tokens, flops)?)?;
    }
    let machine_rates = MachineRates::measure(&context.clock)?;
    writeln!(context.out, "\nOther numbers of packages, with the time on this machine:")?;
    write!(context.out, "{}", counts(&job, &described, &bare, &machine_rates)?)?;
    if let Some(workers) = args.workers {
        let bandwidth = args.bandwidth.unwrap_or(BANDWIDTH);
        write!(
            context.out,
            "{}",
            times(&job, &described, &plan, (workers, bandwidth), machine_rates.products, &context.clock)?
        )?;
    }
    if let Some(note) = prompts.note {
        writeln!(context.out, "Note: {note}")?;
    }
    match args.memory.or(context.memory) {
        Some(memory) => fit::check(&job, &described, &bare, 1, memory),
        None => Ok(()),
    }
}

/// What the conditioning of all prompts takes, and where it lies.
fn of_conditioning(job: &JobFile, described: &Described, prompts: &JobPrompts) -> String {
    let (all, one) = described.conditioning_bytes(&job.spec);
    let count = prompts.calibration.len() + prompts.held_out.len();
    let shard = u64::from(job.spec.calibration.shard_size).saturating_mul(one);
    let read = if described.is_kept(&job.spec) {
        "kept in memory by each worker".to_owned()
    } else {
        format!("of which each worker reads {} at a time", ByteSize(shard))
    };
    let made = match &job.spec.calibration.conditioning {
        Some(file) => format!("taken from {file}"),
        None => "encoded once".to_owned(),
    };
    format!(
        "Conditioning of {count} prompts and the empty one: {} in {}, {made}, {read}",
        ByteSize(all),
        location(job)
    )
}

/// What each worker past the first sends and takes.
pub(super) fn traffic(cost: &PlanCost) -> String {
    let total = cost.total();
    format!(
        "Traffic of each worker past the first: {} of Grams sent, {} of weights taken\n",
        ByteSize(total.gram_bytes),
        ByteSize(total.weights * 4)
    )
}

/// Memories of common GPUs.
const MEMORIES: [(&str, u64); 3] =
    [("24 GB", 24_000_000_000), ("48 GB", 48_000_000_000), ("80 GB", 80_000_000_000)];

/// The total size and arithmetic of the Grams of all sites, including those that the job leaves dense, and the fewest packages they
/// need.
pub(super) fn whole_model(
    job: &JobFile,
    inventory: &Inventory,
    tokens: Tokens,
    forward_flops: f64,
) -> Result<String> {
    let spec = &job.spec;
    let totals = GramTotals::new(inventory, spec.hessian.accumulate, tokens);
    let branches = tokens.branches as f64;
    let mut fewest = Vec::new();
    for (memory, bytes) in MEMORIES {
        let count =
            packages_within(spec, inventory, tokens, ByteSize(bytes)).map_err(|e| job.unplanned(e))?;
        fewest.push(
            count.map_or_else(|| format!("none for {memory}"), |count| format!("{count} for {memory}")),
        );
    }
    Ok(format!(
        "Grams of all sites: {}, {} as they are kept, {} ({:.2} GB) as squares of f32\n\
         A step of a prompt: {} of forward calls, {} of Grams\n\
         Fewest packages by the memory of their Grams: {}\n",
        totals.count,
        ByteSize(totals.packed_bytes),
        ByteSize(totals.square_bytes),
        totals.square_bytes as f64 / 1e9,
        text::flops(branches * forward_flops),
        text::flops(branches * totals.flops),
        fewest.join(", "),
    ))
}

/// The predicted time of each package for this number of workers with this bandwidth. The speed of one worker is measured here;
/// products run at `rate` operations a second.
fn times(
    job: &JobFile,
    described: &Described,
    plan: &Plan,
    (workers, bandwidth): (u32, ByteSize),
    rate: f64,
    clock: &Clock,
) -> Result<String> {
    let rates = rates::measure(job, described, rate, clock)?;
    let setting = PredictionInputs {
        inventory: &described.inventory,
        accumulate: job.spec.hessian.accumulate,
        options: &Options::of(&job.spec),
        workload: &described.workload(&job.spec),
        rates: &rates,
    };
    let times = |workers| {
        let cluster = Cluster { workers, bandwidth: bandwidth.0 as f64 };
        cost::times(plan, setting, cluster)
    };
    let of_one: PackageTimes = times(1).into_iter().sum();
    let times = times(workers);
    let all: PackageTimes = times.iter().copied().sum();
    let mut table = Table::new(["package", "calibrate", "reduce", "solve", "all"]);
    let seconds = |seconds: f64| text::duration(Duration::from_secs_f64(seconds.clamp(0.0, 1e12)));
    let row = |name: String, times: &PackageTimes| {
        [name, seconds(times.calibrate), seconds(times.reduce), seconds(times.solve), seconds(times.all())]
    };
    for (package, times) in plan.packages.iter().zip(&times) {
        table.row(row((package.id.0 + 1).to_string(), times));
    }
    table.rule();
    table.row(row("all".to_owned(), &all));
    let who = match workers {
        1 => "1 worker like this machine".to_owned(),
        _ => format!(
            "{workers} workers like this machine, {bandwidth} a second between them, {:.1} times as fast as one",
            of_one.all() / all.all()
        ),
    };
    Ok(format!("\nTime of {who}:\n{table}"))
}

pub(super) fn summary(spec: &JobSpec, inventory: &Inventory, tokens: Tokens) -> String {
    let c = &spec.calibration;
    let method = match spec.sparsity.method {
        Method::Obs => "obs",
        Method::Admm => "admm",
        Method::Magnitude => "magnitude",
        Method::Wanda => "wanda",
        Method::L1 => "l1",
    };
    let share = match (spec.sparsity.pattern, spec.sparsity.ratio) {
        (Pattern::Unstructured, Some(ratio)) if spec.sparsity.surveys_linears() => {
            format!("{}% unstructured, of each linear as much as costs least over the model,", ratio * 100.0)
        }
        (Pattern::Unstructured, Some(ratio)) => format!("{}% unstructured", ratio * 100.0),
        (Pattern::NToM { .. }, _) if spec.sparsity.dense > 0.0 => {
            format!("{} but for {}% of the weights", spec.sparsity.pattern, spec.sparsity.dense * 100.0)
        }
        (Pattern::Structured, Some(ratio)) => format!("{}% of each block's heads and neurons", ratio * 100.0),
        (Pattern::Structured, None) => {
            format!(
                "heads and neurons worth {}% of a forward call",
                spec.sparsity.budget.unwrap_or(0.0) * 100.0
            )
        }
        (pattern, _) => pattern.to_string(),
    };
    let calibration = match spec.sparsity.calibrates() {
        false if spec.sparsity.method == Method::Magnitude => {
            "none, magnitude without refinement needs no activations".to_owned()
        }
        false => format!("none, {method} needs no activations"),
        true => format!(
            "{} prompts x {} steps at guidance {}, {} image and {} text tokens",
            c.count, c.steps, c.guidance, tokens.image, tokens.text
        ),
    };
    let refined = match spec.sparsity.refinement() {
        0 => String::new(),
        steps => format!(", refined by {steps} steps"),
    };
    let prunable: u64 = inventory.linears.iter().map(|linear| inventory.parameters_of(linear)).sum();
    format!(
        "model        {} ({} parameters, {} of them in what can be pruned: {} units, {} linears)\nsparsity     {share} by {method}{refined}\ncalibration  {calibration}\n",
        spec.model.path,
        text::count(inventory.parameters),
        text::percent(prunable, inventory.parameters),
        inventory.units.len(),
        inventory.linears.len(),
    )
}

pub(super) fn table(plan: &Plan, cost: &PlanCost) -> Table {
    let header = [
        "package",
        "units",
        "sites",
        "linears",
        "weights",
        "Grams",
        "passes",
        "forward",
        "Gram work",
        "solving",
    ];
    let mut table = Table::new(header);
    let row = |name: String, units: String, c: &PackageCost, grams: u64| {
        [
            name,
            units,
            c.sites.to_string(),
            c.linears.to_string(),
            text::count(c.weights),
            ByteSize(grams).to_string(),
            c.passes.to_string(),
            text::flops(c.forward_flops),
            text::flops(c.gram_flops),
            text::flops(c.solve_flops),
        ]
    };
    for (package, cost) in plan.packages.iter().zip(&cost.packages) {
        // People count units from 1, and both ends.
        let units = match package.units.len() {
            1 => package.units.end.to_string(),
            _ => format!("{}-{}", package.units.start + 1, package.units.end),
        };
        let what = if package.survey { " (survey)" } else { "" };
        table.row(row(format!("{}{what}", package.id.0 + 1), units, cost, cost.gram_bytes));
    }
    table.rule();
    let units = plan.packages.last().map_or(0, |package| package.units.end);
    table.row(row("all".to_owned(), units.to_string(), &cost.total(), cost.largest_grams()));
    table
}

fn memory(needs: &MemoryNeeds, cost: &PlanCost) -> String {
    let parts = [
        (needs.model, "transformer"),
        (needs.text, "encoded prompts"),
        (cost.largest_grams(), "Grams of the largest package"),
        (needs.activations, "activations"),
        (needs.solver, "solver"),
        (needs.base, "program"),
    ];
    let parts = parts.map(|(bytes, what)| format!("{} {what}", ByteSize(bytes)));
    format!("Peak memory, predicted: {}\n  ({})\n", ByteSize(needs.peak(cost)), parts.join(", "))
}
