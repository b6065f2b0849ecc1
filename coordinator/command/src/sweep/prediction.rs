//! What a survey predicts of other ratios and patterns, before anything is pruned.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use candle_core::{DType, Tensor};
use obsdiff_engine::calibrate::Conditionings;
use obsdiff_engine::gram::{Gram, PlacedGram};
use obsdiff_engine::pipeline::Conditioning;
use obsdiff_engine::pruner::{Allocated, Pruner, expected_at};
use obsdiff_proto::message::Slice;
use obsdiff_proto::{Allocation, LinearId, LinearTarget, Pattern};
use obsdiff_store::GramStore;
use obsdiff_worker::device::WorkError;
use obsdiff_worker::grams::{GramIndex, KeptGrams};
use obsdiff_worker::preparation;

use super::Point;
use crate::described::Described;
use crate::progress::Progress;
use crate::run::check_kept;
use crate::runtime::runtime;
use crate::{Error, Result};
use obsdiff_engine::HOST;

/// How far a survey expects the velocity of a pruned model to be from the dense one's, where it says so: the root of the mean squared
/// relative change. An N:M pattern is tried on every linear by the Grams, which takes as long as solving.
pub(super) fn expected(point: &Point, described: &Described, progress: &Progress) -> Result<Option<f64>> {
    let job = &point.job;
    let Some(kept) = job.kept().filter(|kept| applies(kept, point)) else { return Ok(None) };
    let plan = described.plan(job)?;
    let linears: Vec<LinearTarget> = plan.packages.iter().flat_map(|p| p.linears.iter().copied()).collect();
    let own = &kept.spec.sparsity;
    let surveyed = linears_of(kept, &linears, described)?;
    let sparsity = &job.spec.sparsity;
    let square = match sparsity.pattern {
        Pattern::Structured => return Ok(None),
        Pattern::Unstructured if sparsity.allocation == Some(Allocation::Global) => {
            if own.tried_ratios() != sparsity.tried_ratios() {
                return Ok(None);
            }
            Allocated::new(sparsity, &described.inventory, &linears, &kept.survey)?.expected
        }
        Pattern::Unstructured => {
            let (tried, ratio) = (own.tried_ratios(), point.figures.ratio);
            if !tried.first().zip(tried.last()).is_some_and(|(least, most)| (*least..=*most).contains(&ratio))
            {
                return Ok(None);
            }
            expected_at(own, &described.inventory, &surveyed, &kept.survey, ratio)?
        }
        Pattern::NToM { .. } => {
            let costs = Allocated::new(own, &described.inventory, &surveyed, &kept.survey)?.costs;
            let errors = errors(point, kept, described, progress)?;
            let cost = |linear: &LinearId| costs.get(linear).copied().unwrap_or(0.0);
            errors.iter().map(|(linear, error)| cost(linear) * error).sum()
        }
    };
    Ok(Some(square.sqrt()))
}

/// Whether a survey of the same weights by ratio is kept that holds for a point.
fn applies(kept: &GramIndex, point: &Point) -> bool {
    let (own, theirs) = (&point.job.spec, &kept.spec);
    let same_rules = own.sparsity.rules == theirs.sparsity.rules;
    let dense = own.sparsity.dense == 0.0;
    let by_ratio = theirs.sparsity.pattern == Pattern::Unstructured;
    by_ratio && dense && same_rules && !kept.survey.is_empty() && kept.surveys_like(own)
}

/// The linears of a point with the targets that the earlier job had for them, by which its survey is read.
fn linears_of(
    kept: &GramIndex,
    linears: &[LinearTarget],
    described: &Described,
) -> Result<Vec<LinearTarget>> {
    let targets = obsdiff_proto::Targets::new(&kept.spec.sparsity)
        .map_err(|e| Error::content("grams.json", e.to_string()))?;
    let name = |linear: LinearId| &described.inventory.linear(linear).name;
    let of =
        |one: &LinearTarget| Some(LinearTarget { linear: one.linear, target: targets.of(name(one.linear))? });
    Ok(linears.iter().filter_map(of).collect())
}

/// The relative output error of each linear of a point, pruned alone by its kept Gram.
fn errors(
    point: &Point,
    kept: &Arc<GramIndex>,
    described: &Described,
    progress: &Progress,
) -> Result<BTreeMap<LinearId, f64>> {
    let job = &point.job;
    let url = job.spec.calibration.grams.clone().unwrap_or_default();
    let runtime = runtime()?;
    let store = GramStore::open(&url, job.stores().pairs())?;
    let grams = KeptGrams::new(store, runtime.handle().clone(), kept.clone(), &job.spec);
    let model_files = described.files.digests(described.pipeline.path(), &|| ())?;
    check_kept(job, kept, &model_files)?;
    let weights = Arc::new(described.pipeline.transformer_weights()?);
    let (model, trajectories) = preparation::load(&job.spec, described.model(), &weights, NoPrompts::new()?)?;
    let mut pruner = Pruner::new(&job.spec, model, weights, trajectories);
    let plan = described.plan(job)?;
    let inventory = &described.inventory;
    let all: usize = plan.packages.iter().map(|package| package.linears.len()).sum();
    let phase = progress.phase("predict", "linears", all as u64);
    let mut errors = BTreeMap::new();
    for package in &plan.packages {
        for site in &package.sites {
            let Some(known) = kept.of(*site) else { continue };
            let mut gram = Gram::new(known.width, job.spec.hessian.accumulate, known.exponent);
            grams.read(*site, &mut gram).map_err(WorkError::from)?;
            let gram = PlacedGram::from(gram);
            let here = package.linears.iter().filter(|one| inventory.linear(one.linear).site == *site);
            let whole =
                |one: &LinearTarget| Slice { linear: one.linear, rows: 0..inventory.linear(one.linear).rows };
            let slices: Vec<Slice> = here.map(whole).collect();
            pruner.solve(package, &slices, Some(&gram), &mut |solved| {
                errors.insert(solved.slice.linear, solved.report.relative_error.unwrap_or(0.0));
                phase.advance(1);
                Ok(())
            })?;
        }
    }
    described.files.check_unchanged()?;
    phase.finish();
    Ok(errors)
}

/// The prompts of a model that takes no forward call.
#[derive(Debug)]
struct NoPrompts(Conditioning);

impl NoPrompts {
    fn new() -> Result<Self> {
        let nothing = || Tensor::zeros((1, 1), DType::F32, &HOST).map_err(obsdiff_engine::Error::from);
        Ok(Self(Conditioning { text: nothing()?, pooled: nothing()? }))
    }
}

impl Conditionings for NoPrompts {
    fn prompts(&self) -> u32 {
        0
    }

    fn negative(&self) -> &Conditioning {
        &self.0
    }

    fn read(&self, prompts: Range<u32>) -> obsdiff_engine::Result<Vec<Conditioning>> {
        Err(obsdiff_engine::Error::Argument(format!("prompts {prompts:?} are none of a prediction")))
    }
}
