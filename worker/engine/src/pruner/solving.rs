//! Solving a site: its Gram factorised once, each of its linears pruned by it.

use candle_core::{DType, Device, Tensor};
use obsdiff_proto::{LinearId, LinearTarget, Method, PackageId, Precision, SiteId};

use super::{Pruner, no_package};
use crate::export::PrunedLinear;
use crate::gram::Gram;
use crate::solve::{Factor, SolveError, magnitude, obs, relative_error, stride, wanda};
use crate::{Error, Result};

/// A pruned weight that is not applied yet, and what is to be said of it.
#[derive(Clone, Debug)]
pub struct SolvedLinear {
    /// Which linear.
    pub linear: LinearId,
    /// Its new weight, `rows x n`, f32.
    pub weight: Tensor,
    /// How it was pruned and how well it kept its function.
    pub report: PrunedLinear,
}

/// What the linears of a site share.
struct SecondOrder {
    gram_trace: f64,
    factor: Factor,
}

impl Pruner {
    /// Prunes the linears of a site of the open package, which gives up the site's Gram. The model stays as it is.
    ///
    /// # Errors
    /// When the site is not open, its Gram cannot be factorised, or a weight is not finite.
    pub fn solve(&mut self, site: SiteId) -> Result<Vec<SolvedLinear>> {
        let _span = tracing::info_span!("solve").entered();
        let open = self.open.as_mut().ok_or_else(no_package)?;
        let gram = open.grams.remove(&site);
        let package = open.package.id;
        let inventory = self.model.inventory();
        let targets: Vec<LinearTarget> = open
            .package
            .linears
            .iter()
            .filter(|t| inventory.linear(t.linear).site == site)
            .copied()
            .collect();
        let failed = |error: SolveError| Error::Site {
            name: inventory.site(site).name.clone(),
            problem: error.to_string(),
        };
        let second_order = match self.method {
            Method::Magnitude => None,
            Method::Obs | Method::Wanda => {
                let gram = gram.ok_or_else(no_package)?;
                Some(SecondOrder { gram_trace: gram.trace(), factor: self.factor(gram).map_err(failed)? })
            }
        };
        targets.into_iter().map(|target| self.solve_linear(package, target, second_order.as_ref())).collect()
    }

    fn factor(&self, gram: Gram) -> Result<Factor, SolveError> {
        let (n, damping) = (gram.width(), self.hessian.damping);
        match self.hessian.precision {
            Precision::F32 => Factor::new(n, gram.into_upper::<f32>(stride(n)), damping),
            Precision::F64 => Factor::new(n, gram.into_upper::<f64>(stride(n)), damping),
        }
    }

    fn solve_linear(
        &self,
        package: PackageId,
        target: LinearTarget,
        second_order: Option<&SecondOrder>,
    ) -> Result<SolvedLinear> {
        let factor = second_order.map(|known| &known.factor);
        let LinearTarget { linear, target } = target;
        let described = self.model.inventory().linear(linear);
        let failed =
            |error: SolveError| Error::Site { name: described.name.clone(), problem: error.to_string() };
        let dense = values(self.model.weight(linear)?)?;
        let width = dense.len() / described.rows;
        let mut weight = dense.clone();
        match (self.method, factor) {
            (Method::Obs, Some(factor)) => obs(&mut weight, factor, &target),
            (Method::Wanda, Some(factor)) => wanda(&mut weight, factor.diagonal(), &target),
            _ => magnitude(&mut weight, width, &target),
        }
        .map_err(failed)?;
        let relative_error =
            factor.map(|factor| relative_error(&dense, &weight, factor)).transpose().map_err(failed)?;
        let report = PrunedLinear {
            name: described.name.clone(),
            shape: [described.rows, width],
            target,
            package: package.0,
            zeros: weight.iter().filter(|w| **w == 0.0).count() as u64,
            damping: factor.filter(|_| self.method == Method::Obs).map(Factor::damping_used),
            gram_trace: second_order.map(|known| known.gram_trace),
            relative_error,
        };
        let weight = Tensor::from_vec(weight, (described.rows, width), &Device::Cpu)?;
        Ok(SolvedLinear { linear, weight, report })
    }
}

fn values(weight: &Tensor) -> Result<Vec<f32>> {
    Ok(weight.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?)
}
