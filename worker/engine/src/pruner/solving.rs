//! Solving a part: its site's Gram is factorised once; then each slice (a linear, or some rows of one) is pruned by it and refined.

use std::mem;

use candle_core::Tensor;
use obsdiff_proto::message::Slice;
use obsdiff_proto::{LinearTarget, Method, Package, PackageId, Precision, SiteId, Target};

use super::stored::{Reported, zeros};
use super::{Pruner, of_site};
use crate::export::PrunedLinear;
use crate::gram::{Gram, GramError, PlacedGram};
use crate::solve::{
    BLOCK, Factor, Obs, OutputEnergy, SIDE_BY_SIDE, SMALL_LINEAR, ScaledHessian, SiteSettings, SiteSolver,
    SolveError, SolvedWeight, magnitude, output_energy, refine, stride, wanda,
};
use crate::{Error, HOST, Result};

/// Pruned rows of a linear that are not applied yet, with their report.
#[derive(Clone, Debug)]
pub struct SolvedSlice {
    /// Which rows of which linear.
    pub slice: Slice,
    /// Their new weight, `rows x n`, f32.
    pub weight: Tensor,
    /// How they were pruned, and how well they keep their function once an export has rounded them to the checkpoint's type.
    pub report: PrunedLinear,
    /// The energies that the report's relative error is the ratio of: those of a linear's slices add up. Absent without a Gram.
    pub energy: Option<OutputEnergy>,
}

/// The factorised Gram that the linears of a site share.
struct SecondOrder {
    gram_trace: f64,
    factor: Factor,
}

/// What the report of a solved slice says besides its weight.
struct SliceFacts {
    /// The damping added to the Gram's diagonal, over the diagonal's mean; none where the method uses no damping.
    damping: Option<f64>,
    gram_trace: Option<f64>,
    energy: Option<OutputEnergy>,
}

fn foreign_part() -> Error {
    Error::Argument("a part is not of this package, or not of one site".to_owned())
}

impl Pruner {
    /// Prunes rows of linears that all read one site, by the site's Gram (`None` where the method needs none). `done` receives each slice
    /// as soon as it is pruned and refined. Rows of different calls do not compete for zeros. The model does not change.
    ///
    /// # Errors
    /// When a slice is not of this package and site, the Gram is missing or cannot be factorised, a weight is not finite, or leaves the
    /// range of the checkpoint's type when pruned, or `done` fails.
    pub fn solve(
        &mut self,
        package: &Package,
        slices: &[Slice],
        gram: Option<&PlacedGram>,
        done: &mut dyn FnMut(SolvedSlice) -> Result<()>,
    ) -> Result<()> {
        let target = |slice: &Slice| {
            let of_package = package.linears.iter().find(|target| target.linear == slice.linear);
            Ok((slice.clone(), of_package.ok_or_else(foreign_part)?.target))
        };
        let wanted = slices.iter().map(target).collect::<Result<Vec<_>>>()?;
        self.solve_to(package.id, &wanted, gram, Reported::Stored, done)
    }

    /// As [`Self::solve`], with a target of its own for each slice. A slice may come several times.
    pub(super) fn solve_to(
        &mut self,
        package: PackageId,
        wanted: &[(Slice, Target)],
        gram: Option<&PlacedGram>,
        reported: Reported,
        done: &mut dyn FnMut(SolvedSlice) -> Result<()>,
    ) -> Result<()> {
        let _span = tracing::info_span!("solve").entered();
        let Some((first, _)) = wanted.first() else { return Ok(()) };
        let linears = &self.model.inventory().linears;
        let site = linears.get(first.linear.0 as usize).ok_or_else(foreign_part)?.site;
        if let Some(gram) = gram
            && let Some(mut solver) = self.site_solver(wanted)
        {
            // After an error the next call begins with new memory, here as with `obs` below.
            self.solve_site(&mut *solver, package, wanted, (site, gram), reported, done)?;
            self.solver = Some(solver);
            return Ok(());
        }
        let failed = |error: SolveError| self.failed(site, &error);
        let second_order = match (self.method, gram) {
            (Method::Magnitude | Method::L1, _) if self.refine == 0 => None,
            (_, Some(gram)) => {
                let gram = gram.to_host().map_err(|error| of_site(site, self.model.inventory(), &error))?;
                Some(SecondOrder { gram_trace: gram.trace(), factor: self.factor(&gram).map_err(failed)? })
            }
            (_, None) => {
                return Err(Error::Site {
                    name: self.model.inventory().site(site).name.clone(),
                    problem: "cannot be solved without its Gram".to_owned(),
                });
            }
        };
        // After an error the next call begins with new memory.
        let mut obs = mem::take(&mut self.obs);
        let mut unrefined = Vec::new();
        for (slice, target) in wanted {
            let target = self.target(slice, *target, site)?;
            let solved =
                self.solve_slice(&mut obs, package, target, slice, second_order.as_ref(), reported)?;
            match self.refine {
                0 => done(solved)?,
                _ => unrefined.push(solved),
            }
        }
        self.obs = obs;
        if let Some(known) = second_order.filter(|_| !unrefined.is_empty()) {
            let _span = tracing::info_span!("refine").entered();
            // All slices are pruned, so that the refinement's matrix may take the factor's memory. A Gram that could be factorised only
            // with more damping than asked for needs it here, too.
            let used = known.factor.damping_used();
            let damping = if used > self.factor_damping() { used } else { self.hessian.damping };
            let hessian = ScaledHessian::new(known.factor, damping);
            for solved in unrefined {
                done(self.refine_slice(solved, &hessian, reported)?)?;
            }
        }
        Ok(())
    }

    /// The target of a slice's linear, which must read the site.
    fn target(&self, slice: &Slice, target: Target, site: SiteId) -> Result<LinearTarget> {
        let described = self.model.inventory().linears.get(slice.linear.0 as usize);
        let of_site = described.is_some_and(|linear| linear.site == site);
        of_site.then_some(LinearTarget { linear: slice.linear, target }).ok_or_else(foreign_part)
    }

    /// What solves whole sites: the device, by alternating directions, or by OBS where it is not the processor. A group of N:M columns has
    /// to fit a block.
    fn site_solver(&mut self, wanted: &[(Slice, Target)]) -> Option<Box<dyn SiteSolver>> {
        let fits = |(_, target): &(Slice, Target)| !matches!(target, Target::NToM { m, .. } if *m > BLOCK);
        let damping = self.factor_damping();
        match self.method {
            Method::Admm => Some(self.solver.take().unwrap_or_else(|| self.device.solver())),
            Method::Obs if wanted.iter().all(fits) => {
                self.solver.take().or_else(|| self.device.obs_solver(damping))
            }
            _ => None,
        }
    }

    /// Prunes slices of one site, and refines each right away. Small ones are pruned side by side, as there is too little in each for all
    /// threads.
    fn solve_site(
        &self,
        solver: &mut dyn SiteSolver,
        package: PackageId,
        wanted: &[(Slice, Target)],
        (site, gram): (SiteId, &PlacedGram),
        reported: Reported,
        done: &mut dyn FnMut(SolvedSlice) -> Result<()>,
    ) -> Result<()> {
        let failed = |error: SolveError| self.failed(site, &error);
        let (n, effort) = (gram.width(), self.sparsity.effort);
        let unread = |error: GramError| of_site(site, self.model.inventory(), &error);
        let on_host = || Ok::<_, GramError>(gram.to_host()?.to_upper::<f32>(stride(n)));
        let packed = gram.packed();
        let upper = if packed.is_none() { Some(on_host().map_err(unread)?) } else { None };
        solver.reserve(effort, self.largest.0, self.largest.1);
        let precision = self.hessian.precision;
        let damping = self.hessian.damping;
        let settings = SiteSettings { damping, precision, effort, refinement: self.refine };
        let in_place = packed.and_then(|packed| solver.begin_in_place(&packed, settings));
        let begun = match (in_place, upper) {
            (Some(begun), _) => begun,
            (None, Some(upper)) => solver.begin(n, upper, settings),
            (None, None) => solver.begin(n, on_host().map_err(unread)?, settings),
        };
        let damping = begun.map_err(failed)?;
        let gram_trace = gram.trace().map_err(unread)?;
        let small = |(slice, _): &(Slice, Target)| slice.rows.len() * n <= SMALL_LINEAR;
        for wanted in
            wanted.chunk_by(|a, b| small(a) && small(b)).flat_map(|small| small.chunks(SIDE_BY_SIDE))
        {
            let targets = wanted.iter().map(|(slice, target)| self.target(slice, *target, site));
            let targets = targets.collect::<Result<Vec<_>>>()?;
            let dense = wanted.iter().map(|(slice, _)| self.dense(slice.linear, slice.rows.clone()));
            let dense = dense.collect::<Result<Vec<_>>>()?;
            let weights: Vec<_> =
                dense.iter().zip(&targets).map(|(dense, target)| (dense.as_slice(), target.target)).collect();
            let solved = solver.solve(&weights);
            drop(weights);
            for ((((slice, _), target), solved), dense) in wanted.iter().zip(targets).zip(solved).zip(dense) {
                let name = &self.model.inventory().linear(slice.linear).name;
                let failed =
                    |error: SolveError| Error::Site { name: name.clone(), problem: error.to_string() };
                let SolvedWeight { weight, energy } = solved.map_err(failed)?;
                let known =
                    SliceFacts { damping: Some(damping), gram_trace: Some(gram_trace), energy: Some(energy) };
                let mut solved = self.solved(package, target, slice, weight, known)?;
                if reported == Reported::Stored {
                    self.report_stored(&mut solved, |stored| solver.change(&dense, stored))?;
                }
                drop(dense);
                done(solved)?;
            }
        }
        solver.end();
        Ok(())
    }

    fn failed(&self, site: SiteId, error: &SolveError) -> Error {
        Error::Site { name: self.model.inventory().site(site).name.clone(), problem: error.to_string() }
    }

    /// The damping of the step that chooses the mask, and without refinement the weights as well.
    fn factor_damping(&self) -> f64 {
        match (self.method, self.refine) {
            (Method::Obs, 1..) => self.hessian.mask_damping,
            _ => self.hessian.damping,
        }
    }

    fn factor(&self, gram: &Gram) -> Result<Factor, SolveError> {
        let (n, damping) = (gram.width(), self.factor_damping());
        match self.hessian.precision {
            Precision::F32 => Factor::with_precise(n, gram.to_upper::<f32>(stride(n)), damping, &|| {
                gram.to_upper::<f64>(stride(n))
            }),
            Precision::F64 => Factor::new(n, gram.to_upper::<f64>(stride(n)), damping),
        }
    }

    fn solve_slice(
        &self,
        obs: &mut Obs,
        package: PackageId,
        target: LinearTarget,
        slice: &Slice,
        second_order: Option<&SecondOrder>,
        reported: Reported,
    ) -> Result<SolvedSlice> {
        let factor = second_order.map(|known| &known.factor);
        let LinearTarget { linear, target } = target;
        let described = self.model.inventory().linear(linear);
        let failed =
            |error: SolveError| Error::Site { name: described.name.clone(), problem: error.to_string() };
        let rows = slice.rows.len();
        let dense = self.dense(linear, slice.rows.clone())?;
        let width = dense.len() / rows.max(1);
        let mut weight = dense.clone();
        match (self.method, factor) {
            (Method::Obs, Some(factor)) => obs.prune(&mut weight, factor, &target),
            (Method::Wanda, Some(factor)) => wanda(&mut weight, factor.diagonal(), &target),
            _ => magnitude(&mut weight, width, &target),
        }
        .map_err(failed)?;
        let energy =
            factor.map(|factor| output_energy(&dense, &weight, factor)).transpose().map_err(failed)?;
        let damping =
            factor.filter(|_| self.method == Method::Obs || self.refine > 0).map(Factor::damping_used);
        let gram_trace = second_order.map(|known| known.gram_trace);
        let target = LinearTarget { linear, target };
        let known = SliceFacts { damping, gram_trace, energy };
        let mut solved = self.solved(package, target, slice, weight, known)?;
        if reported == Reported::Stored && self.refine == 0 {
            let change = |stored: &[f32]| {
                factor.map(|factor| output_energy(&dense, stored, factor).map(|energy| energy.change))
            };
            self.report_stored(&mut solved, change)?;
        }
        Ok(solved)
    }

    /// A slice with its new weight, `rows x n`, and its report.
    fn solved(
        &self,
        package: PackageId,
        target: LinearTarget,
        slice: &Slice,
        weight: Vec<f32>,
        known: SliceFacts,
    ) -> Result<SolvedSlice> {
        let rows = slice.rows.len();
        let shape = [rows, weight.len() / rows.max(1)];
        let SliceFacts { damping, gram_trace, energy } = known;
        let report = PrunedLinear {
            name: self.model.inventory().linear(target.linear).name.clone(),
            shape,
            target: target.target,
            package: package.0,
            zeros: zeros(&weight),
            damping,
            gram_trace,
            unrefined_error: energy.and_then(|energy| energy.unrefined()),
            relative_error: energy.map(|energy| energy.relative()),
            cost: None,
        };
        let weight = Tensor::from_vec(weight, &shape, &HOST)?;
        Ok(SolvedSlice { slice: slice.clone(), weight, report, energy })
    }

    fn refine_slice(
        &self,
        pruned: SolvedSlice,
        hessian: &ScaledHessian,
        reported: Reported,
    ) -> Result<SolvedSlice> {
        let SolvedSlice { slice, weight, mut report, energy } = pruned;
        let dense = self.dense(slice.linear, slice.rows.clone())?;
        let mut refined: Vec<f32> = weight.flatten_all()?.to_vec1()?;
        drop(weight);
        let left = refine(&mut refined, &dense, hessian, self.refine)
            .map_err(|error| Error::Site { name: report.name.clone(), problem: error.to_string() })?;
        let energy = energy.map(|energy| energy.refined(left));
        report.unrefined_error = energy.and_then(|energy| energy.unrefined());
        report.relative_error = energy.map(|energy| energy.relative());
        let weight = Tensor::from_vec(refined, &report.shape, &HOST)?;
        let mut solved = SolvedSlice { slice, weight, report, energy };
        if reported == Reported::Stored {
            self.report_stored(&mut solved, |stored| Some(hessian.change(&dense, stored)))?;
        }
        Ok(solved)
    }
}
