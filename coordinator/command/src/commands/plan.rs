//! `obsdiff plan JOB`.

use obsdiff_core::{MemoryNeeds, PlanCost};
use obsdiff_proto::ByteSize;
use obsdiff_worker::conditioning::ConditioningFile;
use obsdiff_worker::preparation::compute_type;

use super::counts::PackageCount;
use super::device_memory::DeviceMemoryReport;
use super::plan_report::{
    ConditioningReport, CostReport, MemoryReport, ModelSize, PlanReport, RateReport, Traffic, packages,
};
use super::plan_sizes;
use super::plan_times::PredictedTimes;
use super::run::open_device;
use super::whole_model::WholeModel;
use crate::budget::with_surveys;
use crate::cli::PlanArgs;
use crate::context::CommandContext;
use crate::described::Described;
use crate::fit::{self, OnDevice};
use crate::job::JobFile;
use crate::machine::MachineRates;
use crate::prompts::JobPrompts;
use crate::run::{location, shortage};
use crate::shares::ProductShares;
use crate::{Result, conditioning};

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
    let device = open_device(args.device)?;
    context.use_threads(args.threads)?;
    context.compute_here()?;
    let job = context.job(&args.job)?;
    let conditioning = conditioning::open(&job)?;
    let prompts = JobPrompts::load(&job, conditioning.as_ref())?;
    let described = Described::outline(&job, conditioning.as_ref().map(ConditioningFile::text_tokens))?;
    conditioning::check(&job, conditioning.as_ref(), &described, &prompts)?;
    let spec = &job.spec;
    let bare = described.plan(&job)?;
    let plan = with_surveys(&job, &described, bare.clone())?;
    let cost = described.cost(spec, &plan);
    let whole_model = || {
        let flops = described.forward_flops(&*described.config).total();
        WholeModel::new(&job, &described.inventory, described.tokens, flops)
    };
    let machine = MachineRates::measure(&device, compute_type(spec.model.dtype), &context.clock)?;
    let shares = ProductShares::of(&device)?;
    let times = |workers| {
        let cluster = (workers, args.bandwidth.unwrap_or(BANDWIDTH));
        let speed = (&device, machine.forward);
        PredictedTimes::predict(&job, &described, &plan, cluster, speed, &context.clock)
    };
    let on_device = || OnDevice::new(&job, &described, &bare);
    let of_device = |memory| DeviceMemoryReport::new(&on_device(), memory);
    let report = PlanReport {
        device: Some(args.device.to_string()),
        job: spec.clone(),
        model: ModelSize::new(&described.inventory, described.tokens),
        packages: packages(&plan, &cost.packages),
        total: CostReport::new(&cost.total(), cost.largest_grams()),
        memory: Some(memory(
            &described.memory(spec, &plan),
            (&cost, plan.shards.len()),
            args.memory.or(context.memory),
        )),
        device_memory: args.device_memory.map(of_device).transpose()?,
        conditioning: Some(of_conditioning(&job, &described, &prompts)),
        traffic: traffic(&cost),
        whole_model: spec.sparsity.calibrates().then(whole_model).transpose()?,
        other_package_counts: PackageCount::others(&job, &described, &bare, (&machine, &shares))?,
        rates: Some(RateReport::new(&machine, shares)),
        times: args.workers.map(times).transpose()?,
        note: prompts.note,
    };
    context.print_prose(&report, args.json)?;
    if let Some(note) = job.note() {
        context.progress().note(&note);
    }
    // The job may run on another machine with other disks, and refuses there what cannot be looked at.
    if let Ok(Some(shortage)) = shortage(&job, &described, &plan) {
        context.progress().note(&shortage.line());
    }
    if let Some(memory) = args.memory.or(context.memory) {
        fit::check(&job, &described, &bare, 1, memory)?;
    }
    args.device_memory.map_or(Ok(()), |memory| on_device().check(1, memory))
}

fn of_conditioning(job: &JobFile, described: &Described, prompts: &JobPrompts) -> ConditioningReport {
    let (bytes, one) = described.conditioning_bytes(&job.spec);
    let shard = u64::from(job.spec.calibration.shard_size).saturating_mul(one);
    ConditioningReport {
        prompts: prompts.calibration.len() + prompts.held_out.len(),
        bytes,
        location: location(job),
        file: job.spec.calibration.conditioning.clone(),
        shard_bytes: (!described.is_kept(&job.spec)).then_some(shard),
    }
}

pub(super) fn traffic(cost: &PlanCost) -> Traffic {
    let total = cost.total();
    Traffic { sent_gram_bytes: total.gram_bytes, taken_weight_bytes: total.weights * 4 }
}

fn memory(needs: &MemoryNeeds, (cost, shards): (&PlanCost, usize), limit: Option<ByteSize>) -> MemoryReport {
    let workers = fit::best_workers(needs, cost, shards, limit);
    MemoryReport {
        run_workers: workers,
        run_peak_bytes: needs.peak_of(cost, workers as u64),
        peak_bytes: needs.peak(cost),
        transformer_bytes: needs.model,
        prompts_bytes: needs.text,
        grams_bytes: cost.largest_grams(),
        activations_bytes: needs.activations,
        solver_bytes: needs.solver,
        program_bytes: needs.base,
    }
}
