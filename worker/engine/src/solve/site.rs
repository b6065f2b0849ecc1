//! Solving the linears of one site by alternating directions, on the host or on a device.

use obsdiff_proto::{Effort, Precision, Target};
use rayon::prelude::*;

use super::{Admm, AdmmBuffers, OutputEnergy, PackedUpper, ScaledHessian, SolveError, refine};

/// How the linears of a site are to be solved.
#[derive(Clone, Copy, Debug)]
pub struct SiteSettings {
    /// The damping, as a share of the mean of the Gram's diagonal.
    pub damping: f64,
    /// The type in which shifted Grams are factorised.
    pub precision: Precision,
    /// The penalties, and the rounds of each.
    pub effort: Effort,
    /// Steps of refinement.
    pub refinement: u32,
}

/// A weight, pruned and refined.
#[derive(Clone, Debug)]
pub struct SolvedWeight {
    /// The weight, rows x n, row-major.
    pub weight: Vec<f32>,
    /// What was done to the linear's outputs.
    pub energy: OutputEnergy,
}

/// Prunes linears and refines them, one site after another. Weights are rows x n, row-major, and lie on the host.
pub trait SiteSolver: Send {
    /// Prepares for the widest site, of so many columns, and for the largest linear, of so many weights, that will come.
    fn reserve(&mut self, effort: Effort, columns: usize, weights: usize);

    /// Prepares for the linears of a site, and gives the damping that this took. `upper` holds the upper triangle of its Gram, divided by any number, as an n x n row-major
    /// matrix whose rows start [`super::stride`]`(n)` apart. n^3 operations for each penalty.
    ///
    /// # Errors
    /// [`SolveError::GramNotFinite`], [`SolveError::Damping`], [`SolveError::Size`]; [`SolveError::NotPositive`] when it is not that of a
    /// Gram; [`SolveError::Device`].
    fn begin(&mut self, n: usize, upper: Vec<f32>, settings: SiteSettings) -> Result<f64, SolveError>;

    /// [`Self::begin`] by a Gram where it lies; none where the solver does not reach that memory, and nothing is done.
    ///
    /// # Errors
    /// As [`Self::begin`].
    fn begin_in_place(
        &mut self,
        _upper: &PackedUpper,
        _settings: SiteSettings,
    ) -> Option<Result<f64, SolveError>> {
        None
    }

    /// Prunes weights of the site, each to the target beside it, as [`Admm::prune`] or [`super::Obs::prune`] does, and refines them as [`refine`] does. Side by side
    /// where the device gains by it.
    ///
    /// # Errors
    /// For each weight as those, and [`SolveError::Device`].
    fn solve(&mut self, weights: &[(&[f32], Target)]) -> Vec<Result<SolvedWeight, SolveError>>;

    /// tr(dW S dW^T) of a weight of the site, with W = `before`, dW = `after` - W and S the Gram without damping; none where no site was
    /// begun.
    fn change(&mut self, before: &[f32], after: &[f32]) -> Option<Result<f64, SolveError>>;

    /// Drops what the site needed alone.
    fn end(&mut self);
}

/// On the processor.
#[derive(Debug, Default)]
pub struct CpuSolver {
    admm: Admm,
    site: Option<(ScaledHessian, u32)>,
}

/// No site was begun.
pub(crate) const NO_SITE: SolveError = SolveError::Size { rows: 0, columns: 0, found: 0 };

impl SiteSolver for CpuSolver {
    fn reserve(&mut self, effort: Effort, columns: usize, weights: usize) {
        self.admm.reserve(effort, columns, weights);
    }

    fn begin(&mut self, n: usize, upper: Vec<f32>, settings: SiteSettings) -> Result<f64, SolveError> {
        let SiteSettings { damping, precision, effort, refinement } = settings;
        let hessian = ScaledHessian::of_gram(n, upper, damping)?;
        match precision {
            Precision::F32 => self.admm.begin::<f32>(&hessian, effort)?,
            Precision::F64 => self.admm.begin::<f64>(&hessian, effort)?,
        }
        self.site = Some((hessian, refinement));
        Ok(damping)
    }

    fn solve(&mut self, weights: &[(&[f32], Target)]) -> Vec<Result<SolvedWeight, SolveError>> {
        let Self { admm, site } = self;
        let Some((hessian, refinement)) = &*site else {
            return weights.iter().map(|_| Err(NO_SITE)).collect();
        };
        if let [(dense, target)] = weights {
            let prune = |weight: &mut [f32], target: &Target| admm.prune(weight, hessian, target);
            return vec![solve_one(dense, target, hessian, *refinement, prune)];
        }
        let admm = &*admm;
        let each = weights.par_iter().with_max_len(1);
        each.map_init(AdmmBuffers::default, |buffers, (dense, target)| {
            let prune = |weight: &mut [f32], target: &Target| admm.prune_in(buffers, weight, hessian, target);
            solve_one(dense, target, hessian, *refinement, prune)
        })
        .collect()
    }

    fn change(&mut self, before: &[f32], after: &[f32]) -> Option<Result<f64, SolveError>> {
        self.site.as_ref().map(|(hessian, _)| hessian.change(before, after))
    }

    fn end(&mut self) {
        self.site = None;
    }
}

fn solve_one(
    dense: &[f32],
    target: &Target,
    hessian: &ScaledHessian,
    refinement: u32,
    prune: impl FnOnce(&mut [f32], &Target) -> Result<(), SolveError>,
) -> Result<SolvedWeight, SolveError> {
    let mut weight = dense.to_vec();
    prune(&mut weight, target)?;
    let energy = hessian.output_energy(dense, &weight)?;
    if refinement == 0 {
        return Ok(SolvedWeight { weight, energy });
    }
    let _span = tracing::info_span!("refine").entered();
    let left = refine(&mut weight, dense, hessian, refinement)?;
    Ok(SolvedWeight { weight, energy: energy.refined(left) })
}
