//! How the product of an observation is formed and added to a Gram: panel by panel of X^T X, from the diagonal to the right.

use std::ops::Range;

use super::driver::DeviceBuffer;
use super::kernels::Launch;
use super::lanes::{Crossings, Lane};
use super::observation::{DeviceGram, Observation, grown, unit};
use super::products::{Operand, ProductBatch, ProductSizes};
use super::sums::{DeviceSums, own};
use super::verdicts::Verdicts;
use super::{CudaDevice, CudaError};
use crate::device::memory::{LANES, panel};

/// Memory for panels, which observations of all sites share. It grows to what the largest needs.
#[derive(Debug, Default)]
pub(super) struct Panels {
    /// Rows of a panel, where they are not those that [`panel`] says.
    height: Option<usize>,
    of_lanes: [Option<DeviceBuffer<f32>>; LANES],
    crossings: Option<Crossings>,
}

/// A lane and its memory for one panel.
struct LanePanel<'a> {
    lane: &'a Lane,
    product: &'a mut DeviceBuffer<f32>,
}

impl Panels {
    /// Panels of so many rows, or of those that suit a Gram's width.
    pub(super) fn of_height(height: Option<usize>) -> Self {
        Self { height, ..Self::default() }
    }

    /// Adds an observation, if what `judge` gives the first stream to do lets it in. Products are formed meanwhile.
    pub(super) fn add(
        &mut self,
        device: &CudaDevice,
        gram: &mut DeviceGram,
        observation: Observation<'_>,
        alpha: f64,
        verdicts: &mut Verdicts,
        judge: impl FnOnce(&DeviceGram, &mut Verdicts) -> Result<(), CudaError>,
    ) -> Result<(), CudaError> {
        let (n, driver) = (gram.width, device.driver());
        let height = self.height.unwrap_or_else(|| panel(n)).clamp(1, n.max(1));
        let lanes = &device.lanes()[..n.div_ceil(height).min(LANES)];
        let crossings = match &mut self.crossings {
            Some(crossings) => crossings,
            crossings => crossings.insert(Crossings::new(driver)?),
        };
        let mut panels = Vec::with_capacity(LANES);
        for (lane, panel) in lanes.iter().zip(&mut self.of_lanes) {
            panels.push(LanePanel { lane, product: grown(driver, panel, height * n)? });
        }
        gram.sums.unshare(driver)?;
        crossings.ready(driver, lanes)?;
        judge(gram, verdicts)?;
        crossings.judged(driver)?;
        let added = (0..n).step_by(height).enumerate().try_for_each(|(index, first)| {
            let (panel, rows) = (&mut panels[index % lanes.len()], first..n.min(first + height));
            panel.form(n, observation, &rows)?;
            if index < lanes.len() {
                crossings.wait_until_judged(panel.lane)?;
            }
            panel.add(gram, &rows, alpha, verdicts)
        });
        // Also where that failed: what lanes work in must not go.
        crossings.join(driver, lanes)?;
        added
    }
}

impl LanePanel<'_> {
    /// These rows of X^T X, of n x n, from the diagonal on.
    fn form(&mut self, n: usize, observation: Observation<'_>, rows: &Range<usize>) -> Result<(), CudaError> {
        let Observation { values, numbers, tokens, stride } = observation;
        let wide = n - rows.start;
        let sizes = ProductSizes { rows: rows.len(), columns: wide, inner: tokens, stride: wide };
        let left = Operand { values: values.skip(rows.start * numbers.size()), stride, transposed: true };
        let right = Operand { transposed: false, ..left };
        let product = ProductBatch { numbers, sizes, left, right, steps: [0; 3], count: 1 };
        self.lane.products.multiply_to_f32(product, self.product.output().bytes())
    }

    /// Adds them to the sums, unless an observation of this Gram was refused.
    fn add(
        &self,
        gram: &mut DeviceGram,
        rows: &Range<usize>,
        alpha: f64,
        verdicts: &mut Verdicts,
    ) -> Result<(), CudaError> {
        let (n, first, tall, driver) = (gram.width, rows.start, rows.len(), &self.lane.driver);
        let (wide, tile) = (n - first, self.product.input());
        let launch = Launch::tiles_in_fours(tall, wide);
        let (verdict, spoilt) = verdicts.adding(gram.place);
        match &mut gram.sums {
            DeviceSums::Exact(sums) => {
                let (scale, sums) = (alpha / unit(gram.exponent), own(sums)?.output());
                driver.add_tile_exact(
                    launch, tile, tall, wide, wide, first, first, n, scale, verdict, sums, spoilt,
                )
            }
            DeviceSums::F32(sums) => {
                let (alpha, sums) = (alpha as f32, own(sums)?.output());
                driver.add_tile_f32(launch, tile, tall, wide, wide, first, first, n, alpha, verdict, sums)
            }
        }
    }
}
