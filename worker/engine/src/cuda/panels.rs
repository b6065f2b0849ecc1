//! How the product of an observation is formed and added to a Gram: panel by panel of X^T X, from the diagonal to the right.

use std::ops::Range;

use super::driver::{CudaDriver, DeviceBuffer};
use super::kernels::Launch;
use super::lanes::{Crossings, Lane};
use super::observation::{DeviceGram, Observation, grown, unit};
use super::products::{Operand, ProductBatch, ProductSizes};
use super::sums::{DeviceSums, own};
use super::verdicts::Verdicts;
use super::{CudaDevice, CudaError};
use crate::device::memory::{LANES, panel, panel_stride};

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

/// The panels of a Gram, and the lanes that take them in turn.
struct PanelsAtWork<'a> {
    lanes: Vec<LanePanel<'a>>,
    /// Rows of each panel.
    rows: Vec<Range<usize>>,
    crossings: &'a Crossings,
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
        self.in_lanes(device, gram, |gram, panels| {
            let (n, crossings) = (gram.width, panels.crossings);
            // The GPU is given the first panel of each lane before the judgement. It begins blocks of threads about in the order in which
            // they come, and the kernels of a judgement have enough of them to fill it: products that came later would wait, and the
            // tensor cores would do nothing. Products need no verdict. Only adding them does, for which each lane waits below.
            for (lane, rows) in panels.lanes.iter_mut().zip(&panels.rows) {
                lane.form(n, observation, rows)?;
            }
            judge(gram, verdicts)?;
            crossings.judged(device.driver())?;
            let formed = panels.lanes.len();
            panels.each(|index, lane, rows| {
                if index < formed {
                    crossings.wait_until_judged(lane.lane)?;
                } else {
                    lane.form(n, observation, rows)?;
                }
                lane.add(gram, rows, alpha, verdicts)
            })
        })
    }

    /// Forms all panels of an observation and adds none, so that this can be timed.
    pub(super) fn form(
        &mut self,
        device: &CudaDevice,
        gram: &mut DeviceGram,
        observation: Observation<'_>,
    ) -> Result<(), CudaError> {
        let n = gram.width;
        self.in_lanes(device, gram, |_, panels| panels.each(|_, lane, rows| lane.form(n, observation, rows)))
    }

    /// Adds to each panel's sums what its lane holds and forms nothing, so that this can be timed.
    pub(super) fn add_held(
        &mut self,
        device: &CudaDevice,
        gram: &mut DeviceGram,
        alpha: f64,
        verdicts: &mut Verdicts,
    ) -> Result<(), CudaError> {
        self.in_lanes(device, gram, |gram, panels| {
            panels.each(|_, lane, rows| lane.add(gram, rows, alpha, verdicts))
        })
    }

    /// Makes all that lanes hold zeros.
    pub(super) fn clear(&mut self, driver: &CudaDriver) -> Result<(), CudaError> {
        self.of_lanes.iter_mut().flatten().try_for_each(|product| driver.set_bytes(product, 0))
    }

    /// Has lanes do some work on a Gram's panels, after what the first stream was given so far and before what it is given next.
    fn in_lanes(
        &mut self,
        device: &CudaDevice,
        gram: &mut DeviceGram,
        work: impl FnOnce(&mut DeviceGram, &mut PanelsAtWork<'_>) -> Result<(), CudaError>,
    ) -> Result<(), CudaError> {
        let (n, driver) = (gram.width, device.driver());
        let height = self.height.unwrap_or_else(|| panel(n)).clamp(1, n.max(1));
        let lanes = &device.lanes()[..n.div_ceil(height).min(LANES)];
        let crossings = match &mut self.crossings {
            Some(crossings) => crossings,
            crossings => crossings.insert(Crossings::new(driver)?),
        };
        let rows = (0..n).step_by(height).map(|first| first..n.min(first + height)).collect();
        let mut panels = PanelsAtWork { lanes: Vec::with_capacity(LANES), rows, crossings };
        for (lane, panel) in lanes.iter().zip(&mut self.of_lanes) {
            panels.lanes.push(LanePanel { lane, product: grown(driver, panel, height * panel_stride(n))? });
        }
        gram.sums.unshare(driver)?;
        panels.crossings.ready(driver, lanes)?;
        let done = work(gram, &mut panels);
        // Also where that failed: what lanes work in must not go.
        panels.crossings.join(driver, lanes)?;
        done
    }
}

impl<'a> PanelsAtWork<'a> {
    /// Does some work on each panel in its lane. Panels are counted from 0.
    fn each(
        &mut self,
        mut work: impl FnMut(usize, &mut LanePanel<'a>, &Range<usize>) -> Result<(), CudaError>,
    ) -> Result<(), CudaError> {
        let count = self.lanes.len();
        for (index, rows) in self.rows.iter().enumerate() {
            work(index, &mut self.lanes[index % count], rows)?;
        }
        Ok(())
    }
}

impl LanePanel<'_> {
    /// These rows of X^T X, of n x n, from the diagonal on. Where the observation has zeros behind its features, the product has them
    /// too, up to its own stride: cuBLAS is slower where columns or strides are no multiple of 16 bytes.
    fn form(&mut self, n: usize, observation: Observation<'_>, rows: &Range<usize>) -> Result<(), CudaError> {
        let Observation { values, numbers, tokens, stride: of_row } = observation;
        let stride = panel_stride(n - rows.start);
        let columns = stride.min(of_row - rows.start);
        let sizes = ProductSizes { rows: rows.len(), columns, inner: tokens, stride };
        let left =
            Operand { values: values.skip(rows.start * numbers.size()), stride: of_row, transposed: true };
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
        let (launch, stride) = (Launch::tiles_in_fours(tall, wide), panel_stride(wide));
        let (verdict, spoilt) = verdicts.adding(gram.place);
        match &mut gram.sums {
            DeviceSums::Exact(sums) => {
                let (scale, sums) = (alpha / unit(gram.exponent), own(sums)?.output());
                driver.add_tile_exact(
                    launch, tile, tall, wide, stride, first, first, n, scale, verdict, sums, spoilt,
                )
            }
            DeviceSums::F32(sums) => {
                let (alpha, sums) = (alpha as f32, own(sums)?.output());
                driver.add_tile_f32(launch, tile, tall, wide, stride, first, first, n, alpha, verdict, sums)
            }
        }
    }
}
