//! `obsdiff plan CONFIG`: the cost of pruning a model, from its transformer's `config.json` alone.

use std::path::Path;

use obsdiff_core::assignment::SolveCost;
use obsdiff_core::{PlanCost, Tokens, Workload};
use obsdiff_engine::architecture::{TransformerConfig, read_config};
use obsdiff_engine::device::DeviceName;
use obsdiff_engine::pipeline::EncoderKind;
use obsdiff_proto::JobError;

use super::device_memory::DeviceMemoryReport;
use super::plan::traffic;
use super::plan_report::{CostReport, ModelSize, PlanReport, packages};
use super::whole_model::WholeModel;
use crate::cli::PlanArgs;
use crate::context::CommandContext;
use crate::device_needs::DeviceNeeds;
use crate::fit::OnDevice;
use crate::job::JobFile;
use crate::{Error, Result};

/// Pixels on a side of a latent pixel, of the autoencoders of all published models.
const LATENT_PIXEL: usize = 8;

/// Tokens that the CLIP encoders of all published models give.
const CLIP_TOKENS: usize = 77;

/// Whether a path names a configuration, not a job.
pub(super) fn is_config(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name == "config.json")
}

/// Shows packages, bytes and arithmetic. Nothing is measured, and no weight has to be there.
///
/// # Errors
/// When the configuration or a key cannot be used, or a flag needs a model that can be run.
pub(super) fn plan(args: &PlanArgs, context: &mut CommandContext<'_>) -> Result<()> {
    let flags = [
        ("--workers", args.workers.is_some()),
        ("--bandwidth", args.bandwidth.is_some()),
        ("--memory", args.memory.is_some()),
        ("--device", args.device != DeviceName::Cpu),
    ];
    if let Some((flag, _)) = flags.into_iter().find(|(_, given)| *given) {
        let problem = "needs a job on a whole pipeline: a configuration alone is not timed";
        return Err(Error::key(flag, problem));
    }
    let job = context.job_of_config(&args.job)?;
    let spec = &job.spec;
    let config = read_config(Path::new(&spec.model.path))?;
    let inventory = config.inventory();
    let tokens = tokens(&job, &*config)?;
    let plan = obsdiff_core::plan(spec, &inventory, tokens).map_err(|e| job.unplanned(e))?;
    let forward = config.flops(1, tokens.image as usize, tokens.text as usize);
    let flops = forward.total();
    let workload = Workload::new(spec, tokens, forward);
    let solving = SolveCost::of(&spec.sparsity);
    let cost = PlanCost::new(&plan, &inventory, spec.hessian.accumulate, solving, &workload);
    let whole_model = || WholeModel::new(&job, &inventory, tokens, flops);
    let on_device = OnDevice {
        job: &job,
        inventory: &inventory,
        tokens,
        plan: &plan,
        grams: cost.largest_grams(),
        needs: DeviceNeeds::new(spec, &plan, &*config, &inventory, tokens),
    };
    let report = PlanReport {
        device: None,
        job: spec.clone(),
        model: ModelSize::new(&inventory, tokens),
        packages: packages(&plan, &cost.packages),
        total: CostReport::new(&cost.total(), cost.largest_grams()),
        memory: None,
        device_memory: args
            .device_memory
            .map(|memory| DeviceMemoryReport::new(&on_device, memory))
            .transpose()?,
        conditioning: None,
        traffic: traffic(&cost),
        whole_model: spec.sparsity.calibrates().then(whole_model).transpose()?,
        other_package_counts: Vec::new(),
        rates: None,
        times: None,
        note: None,
    };
    context.print_prose(&report, args.json)?;
    if let Some(note) = job.note() {
        context.progress().note(&note);
    }
    args.device_memory.map_or(Ok(()), |memory| on_device.check(1, memory))
}

/// Tokens of a picture of the job's size, with as many text tokens as the published encoders give.
fn tokens(job: &JobFile, config: &dyn TransformerConfig) -> Result<Tokens> {
    let calibration = &job.spec.calibration;
    let latents = config.latents();
    let token = LATENT_PIXEL * latents.patch;
    let side = |key: &str, pixels: Option<u32>| {
        let pixels = pixels.map_or(LATENT_PIXEL * latents.sample, |pixels| pixels as usize);
        let tokens = pixels / token;
        if pixels.is_multiple_of(token) && (1..=latents.max_patches).contains(&tokens) {
            return Ok(tokens as u64);
        }
        let most = token * latents.max_patches;
        let problem = format!("is {pixels}, but must be a multiple of {token} of at most {most}");
        Err(job.refuse(JobError::new(format!("calibration.{key}"), problem)))
    };
    let image = side("height", calibration.height)? * side("width", calibration.width)?;
    let architecture = config.architecture();
    let longest = calibration.max_sequence_length as usize;
    let encoders = architecture.text_encoders.iter().map(|slot| match slot.kind {
        EncoderKind::T5 => Some(longest),
        EncoderKind::Clip | EncoderKind::ClipWithProjection => Some(CLIP_TOKENS),
    });
    let text = config.text_tokens(&encoders.collect::<Vec<_>>(), longest) as u64;
    let guidance = architecture.guidance(config, calibration.guidance, calibration.true_guidance);
    let branches = guidance.map_err(|e| Error::content(job.path(), e.to_string()))?.branches() as u64;
    Ok(Tokens { image, text, branches })
}
