//! How observations are added to Grams: panel by panel of X^T X, from the diagonal to the right.
//!
//! Lanes form the panels; streams that go ahead of them judge the observation and add the panels to the sums. The first stream does not wait
//! for that before something needs it, so lanes go on with the next observation while panels of the last one are still added, and forward calls
//! go on, too. Events keep the order:
//! - `ready`: an observation is read once the first stream has done what it was given before.
//! - `formed`: a panel is added once it is there.
//! - `free`: another one is formed in its memory once it is added.
//! - `judged`: panels are added once their observation is judged. That comes after all panels of the last one are added, because it looks at
//!   the diagonal of the sums.
//! - The first stream goes on with the memory of an observation once its panels are formed and it is judged: when the next one comes, or
//!   somebody asks. With that of sums it goes on once all panels are added, too.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use cudarc::driver::CudaEvent;

use super::driver::DeviceBuffer;
use super::kernels::Launch;
use super::lanes::Ahead;
use super::matrix::CudaMatrix;
use super::observation::{DeviceGram, Observation, Squares, grown, unit};
use super::products::{Operand, ProductBatch, ProductSizes};
use super::stopwatch::Stopwatch;
use super::sums::{DeviceSums, own};
use super::verdicts::Verdicts;
use super::{CudaDevice, CudaError};
use crate::device::memory::{LANES, PANEL, panel_stride, panels_held};

/// Blocks of threads by which a panel is added, each of which has a multiprocessor to itself while it works. With two panels at a time that is
/// up to 48 of the 132 of an H100 or H200. By arithmetic, adding keeps about 18 of them busy: of 4096 tokens a sum takes 8192 operations, a
/// twelfth more below the diagonal, and 20 bytes, and a multiprocessor does 5300 operations in bf16 or moves some 80 bytes in a nanosecond.
/// The rest is for blocks that wait for a multiprocessor. `examples/device_times` tries other numbers.
const ADDING_BLOCKS: usize = 24;

/// Rows of a panel, and blocks of threads that add it, where they are not the usual ones.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct PanelSizes {
    pub(super) rows: Option<usize>,
    pub(super) blocks: Option<usize>,
}

/// Memory for panels, which observations of all sites share. It grows to what the largest needs. What observations are added to goes after it:
/// the first stream waits for that when it is dropped.
#[derive(Debug)]
pub(super) struct Panels {
    device: Arc<CudaDevice>,
    sizes: PanelSizes,
    slots: Vec<Slot>,
    /// The slot of the next panel.
    next: usize,
    marks: Option<Marks>,
    /// Whether an observation may still be read, and the matrix that it lies in: nobody writes or frees that meanwhile.
    is_read: bool,
    held: Option<CudaMatrix>,
    stopwatch: Stopwatch,
}

/// Memory for one panel.
#[derive(Debug)]
struct Slot {
    product: Option<DeviceBuffer<f32>>,
    formed: CudaEvent,
    free: CudaEvent,
}

#[derive(Debug)]
struct Marks {
    ready: CudaEvent,
    judged: CudaEvent,
}

impl Panels {
    /// None yet, of these sizes.
    pub(super) fn new(device: &Arc<CudaDevice>, sizes: PanelSizes) -> Self {
        Self {
            device: Arc::clone(device),
            sizes,
            slots: Vec::new(),
            next: 0,
            marks: None,
            is_read: false,
            held: None,
            stopwatch: Stopwatch::default(),
        }
    }

    /// Adds an observation, if it may be: its Gram's verdict says so later.
    pub(super) fn add(
        &mut self,
        gram: &mut DeviceGram,
        observation: Observation<'_>,
        alpha: f64,
        verdicts: &mut Verdicts,
        squares: &mut Squares,
    ) -> Result<(), CudaError> {
        let added = self.given(gram, observation, alpha, verdicts, squares);
        if added.is_err() {
            // What was given must not go on in memory that goes now. What these say is no more than what has failed before.
            let Ahead { judging, adding } = self.device.ahead();
            let lanes = self.device.lanes().iter().map(|lane| &lane.driver);
            lanes.chain(adding).chain([judging]).for_each(|driver| drop(driver.wait()));
        }
        added
    }

    fn given(
        &mut self,
        gram: &mut DeviceGram,
        observation: Observation<'_>,
        alpha: f64,
        verdicts: &mut Verdicts,
        squares: &mut Squares,
    ) -> Result<(), CudaError> {
        self.begin(gram, observation, squares)?;
        let Ahead { judging, adding } = self.device.ahead();
        squares.measure(judging, observation)?;
        self.slots.iter().try_for_each(|slot| judging.wait_for(&slot.free))?;
        squares.judge(judging, gram, alpha, verdicts)?;
        if let Some(Marks { judged, .. }) = &self.marks {
            judging.record(judged)?;
            adding.iter().try_for_each(|driver| driver.wait_for(judged))?;
        }
        for rows in self.panels_of(gram.width) {
            let slot = self.next_slot(gram.width);
            self.form_in(slot, gram.width, observation, &rows)?;
            self.add_from(slot, gram, &rows, alpha, verdicts)?;
        }
        Ok(())
    }

    /// Forms all panels of an observation and adds none, so that this can be timed.
    pub(super) fn form(
        &mut self,
        gram: &mut DeviceGram,
        observation: Observation<'_>,
        squares: &mut Squares,
    ) -> Result<(), CudaError> {
        self.begin(gram, observation, squares)?;
        for rows in self.panels_of(gram.width) {
            let slot = self.next_slot(gram.width);
            self.form_in(slot, gram.width, observation, &rows)?;
        }
        Ok(())
    }

    /// Adds to each panel's sums what its memory holds and forms nothing, so that this can be timed.
    pub(super) fn add_held(
        &mut self,
        gram: &mut DeviceGram,
        alpha: f64,
        verdicts: &mut Verdicts,
    ) -> Result<(), CudaError> {
        for rows in self.panels_of(gram.width) {
            let slot = self.next_slot(gram.width);
            self.add_from(slot, gram, &rows, alpha, verdicts)?;
        }
        Ok(())
    }

    /// Makes all panels zeros, once [`Self::join`] was asked for.
    pub(super) fn clear(&mut self) -> Result<(), CudaError> {
        let mut products = self.slots.iter_mut().filter_map(|slot| slot.product.as_mut());
        products.try_for_each(|product| self.device.driver().set_bytes(product, 0))
    }

    /// Has the first stream wait until the last observation is read.
    pub(super) fn wait(&mut self) -> Result<(), CudaError> {
        if self.is_read {
            let driver = self.device.driver();
            self.slots.iter().try_for_each(|slot| driver.wait_for(&slot.formed))?;
            self.marks.iter().try_for_each(|marks| driver.wait_for(&marks.judged))?;
            self.stopwatch.end(driver)?;
            self.is_read = false;
            self.held = None;
        }
        Ok(())
    }

    /// Has the first stream wait for all that was given.
    pub(super) fn join(&self) -> Result<(), CudaError> {
        let driver = self.device.driver();
        self.marks.iter().try_for_each(|marks| driver.wait_for(&marks.judged))?;
        self.slots.iter().try_for_each(|slot| {
            driver.wait_for(&slot.formed)?;
            driver.wait_for(&slot.free)
        })
    }

    /// How long observations that were waited for since it was last asked were judged and their panels formed, once that is done.
    pub(super) fn worked(&mut self) -> Result<Duration, CudaError> {
        self.stopwatch.take()
    }

    fn height(&self, n: usize) -> usize {
        self.sizes.rows.unwrap_or(PANEL).clamp(1, n.max(1))
    }

    /// The rows of each panel: first the largest and the smallest, last those between. So any few that follow each other, which lanes form side
    /// by side, are about as large together.
    fn panels_of(&self, n: usize) -> impl Iterator<Item = Range<usize>> + use<> {
        let height = self.height(n);
        let count = n.div_ceil(height);
        let order = (0..count).map(move |i| if i % 2 == 0 { i / 2 } else { count - 1 - i / 2 });
        order.map(move |panel| panel * height..n.min((panel + 1) * height))
    }

    fn next_slot(&mut self, n: usize) -> usize {
        let slot = self.next % panels_held(n.div_ceil(self.height(n)));
        self.next = slot + 1;
        slot
    }

    /// Lets lanes read an observation, and has the first stream wait for the last one.
    fn begin(
        &mut self,
        gram: &mut DeviceGram,
        observation: Observation<'_>,
        squares: &mut Squares,
    ) -> Result<(), CudaError> {
        let device = Arc::clone(&self.device);
        let (n, driver) = (gram.width, device.driver());
        let length = self.height(n) * panel_stride(n);
        let count = panels_held(n.div_ceil(self.height(n)));
        let fits = |slot: &Slot| slot.product.as_ref().is_some_and(|product| product.len() >= length);
        if self.slots.iter().take(count).filter(|slot| fits(slot)).count() < count
            || !squares.have_room(observation)
        {
            self.join()?;
            while self.slots.len() < count {
                let (formed, free) = (driver.event(false)?, driver.event(false)?);
                self.slots.push(Slot { product: None, formed, free });
            }
            for slot in &mut self.slots[..count] {
                grown(driver, &mut slot.product, length)?;
            }
            squares.reserve(driver, observation)?;
        }
        gram.sums.unshare(driver)?;
        let marks = match self.marks.take() {
            Some(marks) => marks,
            None => Marks { ready: driver.event(false)?, judged: driver.event(false)? },
        };
        let Marks { ready, .. } = self.marks.insert(marks);
        driver.record(ready)?;
        device.ahead().judging.wait_for(ready)?;
        device.lanes().iter().try_for_each(|lane| lane.driver.wait_for(ready))?;
        // After `ready`, for which the next products wait.
        self.wait()?;
        self.stopwatch.begin(&device.ahead().judging)?;
        self.is_read = true;
        self.held = observation.matrix.cloned();
        Ok(())
    }

    /// Forms these rows of X^T X, of n x n, from the diagonal on. Where the observation has zeros behind its features, the product has them
    /// too, up to its own stride: cuBLAS is slower where columns or strides are no multiple of 16 bytes.
    fn form_in(
        &mut self,
        slot: usize,
        n: usize,
        observation: Observation<'_>,
        rows: &Range<usize>,
    ) -> Result<(), CudaError> {
        let (lane, Slot { product: out, formed, free }) =
            (&self.device.lanes()[slot % LANES], &mut self.slots[slot]);
        let Some(out) = out else { return Ok(()) };
        let Observation { values, numbers, tokens, stride: of_row, .. } = observation;
        let stride = panel_stride(n - rows.start);
        let columns = stride.min(of_row - rows.start);
        let sizes = ProductSizes { rows: rows.len(), columns, inner: tokens, stride };
        let left =
            Operand { values: values.skip(rows.start * numbers.size()), stride: of_row, transposed: true };
        let right = Operand { transposed: false, ..left };
        let product = ProductBatch { numbers, sizes, left, right, steps: [0; 3], count: 1 };
        lane.driver.wait_for(free)?;
        lane.products.multiply_to_f32(product, out.output().bytes())?;
        lane.driver.record(formed)
    }

    /// Adds them to the sums, unless an observation of this Gram was refused.
    fn add_from(
        &self,
        slot: usize,
        gram: &mut DeviceGram,
        rows: &Range<usize>,
        alpha: f64,
        verdicts: &mut Verdicts,
    ) -> Result<(), CudaError> {
        let adding = &self.device.ahead().adding;
        let (driver, Slot { product, formed, free }) = (&adding[slot % adding.len()], &self.slots[slot]);
        let Some(product) = product else { return Ok(()) };
        let (n, first, tall, tile) = (gram.width, rows.start, rows.len(), product.input());
        let (wide, stride) = (n - first, panel_stride(n - first));
        let launch = Launch::in_turn(tall, wide, self.sizes.blocks.unwrap_or(ADDING_BLOCKS));
        let (verdict, spoilt) = verdicts.adding(gram.place);
        driver.wait_for(formed)?;
        match &mut gram.sums {
            DeviceSums::Exact(sums) => {
                let (scale, sums) = (alpha / unit(gram.exponent), own(sums)?.output());
                driver.add_tile_exact(
                    launch, tile, tall, wide, stride, first, first, n, scale, verdict, sums, spoilt,
                )?;
            }
            DeviceSums::F32(sums) => {
                let (alpha, sums) = (alpha as f32, own(sums)?.output());
                driver
                    .add_tile_f32(launch, tile, tall, wide, stride, first, first, n, alpha, verdict, sums)?;
            }
        }
        driver.record(free)
    }
}

impl Drop for Panels {
    fn drop(&mut self) {
        // Nothing can be done about a failure: the GPU is lost.
        let _ = self.join();
    }
}
