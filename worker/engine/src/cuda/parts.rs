//! What a GPU spends its time on in an observation and in a solve: each part is timed alone, by the GPU's own clock. Only measurements ask.

use std::sync::Arc;
use std::time::Duration;

use obsdiff_proto::Accumulate;

use super::inverses::inverse_times;
use super::matrix::CudaMatrix;
use super::observation::{DeviceGram, Observation, Squares};
use super::panels::{PanelSizes, Panels};
use super::products::{Operand, ProductBatch, ProductSizes};
use super::stopwatch::Stopwatch;
use super::sums::DeviceSums;
use super::upper::Upper;
use super::verdicts::Verdicts;
use super::{CudaDevice, CudaError};
use crate::device::PartTimes;
use crate::device::transfers::TransferKind;
use crate::gram::{Gram, GramError};
use crate::solve::{PackedUpper, SiteSettings, SolveError};

/// How long the parts of an observation take, one of `times` that are given one after another: `judge`, `products` and `adds`; and the
/// `whole_product` X^T X, of which a Gram has half. Sums are exact, of this exponent, and what is added are zeros.
pub(crate) fn observation_times(
    device: &Arc<CudaDevice>,
    rows: &CudaMatrix,
    exponent: i32,
    times: u32,
) -> Result<PartTimes, CudaError> {
    if !rows.is_on(device) {
        let problem = "its rows are on another GPU".to_owned();
        return Err(CudaError::Call { call: "timing an observation", problem });
    }
    let (driver, width, alpha) = (device.driver(), rows.columns(), 1.0);
    let (numbers, tokens) = (rows.numbers(), rows.rows());
    let values = rows.input();
    let observation = Observation { values, numbers, tokens, stride: width, matrix: Some(rows) };
    let sums = DeviceSums::zeros(driver, Accumulate::Exact, Gram::entries(width))?;
    let host = Gram::of_mass(width, Accumulate::Exact, exponent, 0);
    let mut gram = DeviceGram { place: 0, width, exponent, sums, host };
    let mut verdicts = None;
    let verdicts = Verdicts::of(driver, &mut verdicts, 1)?;
    let mut squares = Squares::default();
    let mut whole = driver.buffer::<f32>(width * width)?;
    let left = Operand { values, stride: width, transposed: true };
    let right = Operand { transposed: false, ..left };
    let sizes = ProductSizes { rows: width, columns: width, inner: tokens, stride: width };
    let product = ProductBatch { numbers, sizes, left, right, steps: [0; 3], count: 1 };
    let mut panels = Panels::new(device, PanelSizes::default());
    let judged = |squares: &mut Squares, gram: &DeviceGram, verdicts: &mut Verdicts| {
        squares.measure(driver, observation)?;
        squares.judge(driver, gram, alpha, verdicts)
    };
    // Memory is taken, and libraries load their code, before anything is timed.
    judged(&mut squares, &gram, verdicts)?;
    device.products().multiply_to_f32(product, whole.output().bytes())?;
    panels.form(&mut gram, observation, &mut squares)?;
    panels.join()?;
    let judge = timed(device, times, || judged(&mut squares, &gram, verdicts))?;
    let whole_product =
        timed(device, times, || device.products().multiply_to_f32(product, whole.output().bytes()))?;
    let products = all_timed(device, times, || {
        (0..times).try_for_each(|_| panels.form(&mut gram, observation, &mut squares))?;
        panels.join()
    })?;
    panels.clear()?;
    let adds = all_timed(device, times, || {
        (0..times).try_for_each(|_| panels.add_held(&mut gram, alpha, verdicts))?;
        panels.join()
    })?;
    // Of an observation that is refused nothing would have been added.
    for verdict in verdicts.read(driver, 1)? {
        verdict.result(exponent).map_err(|error: GramError| CudaError::Call {
            call: "timing an observation",
            problem: error.to_string(),
        })?;
    }
    let parts = [("judge", judge), ("products", products), ("adds", adds)];
    Ok(parts.into_iter().chain([("whole_product", whole_product)]).collect())
}

/// How long the parts of a solve by alternating directions take: `factor` and `inverse` of all penalties, all `products`, and `copies` of
/// the weight to the GPU and back. What a solve takes besides is for its masks and for what lies between products.
pub(crate) fn solve_times(
    device: &Arc<CudaDevice>,
    packed: &PackedUpper,
    weight: &[f32],
    settings: SiteSettings,
) -> Result<PartTimes, SolveError> {
    let (driver, n) = (device.driver(), packed.n);
    let SiteSettings { damping, effort, refinement, .. } = settings;
    let upper = Upper::of_packed(device, packed)?;
    let scales = upper.scales(damping)?;
    let square = upper.into_scaled(driver, &scales)?;
    let [factor, inverse] = inverse_times(device, &square, n, effort.penalties())?;
    let (mut there, mut back) = (driver.buffer::<f32>(weight.len())?, vec![0.0; weight.len()]);
    let copies = timed(device, 1, || {
        driver.write(TransferKind::Weights, weight, &mut there)?;
        driver.read(TransferKind::Results, &there, &mut back)
    })?;
    let mut out = driver.buffer::<f32>(weight.len())?;
    let [left, right] =
        [&there, &square].map(|of| Operand { values: of.input(), stride: n, transposed: false });
    let sizes = ProductSizes { rows: weight.len() / n, columns: n, inner: n, stride: n };
    // Refinement needs one for each step, one before them, and one for the dense weight's outputs.
    let count = effort.products() as u32 + refinement + 2;
    let product =
        timed(device, count, || device.products().multiply(sizes, 1.0, left, right, 0.0, out.output()))?;
    let products = product * count;
    Ok(PartTimes::from([
        ("factor", factor),
        ("inverse", inverse),
        ("products", products),
        ("copies", copies),
    ]))
}

/// How long some work takes that is given so many times, each of them.
fn timed(
    device: &CudaDevice,
    times: u32,
    mut work: impl FnMut() -> Result<(), CudaError>,
) -> Result<Duration, CudaError> {
    all_timed(device, times, || (0..times).try_for_each(|_| work()))
}

/// How long each of so many pieces of work takes that are given together: on the first stream, and on others that this one waits for.
fn all_timed(
    device: &CudaDevice,
    times: u32,
    work: impl FnOnce() -> Result<(), CudaError>,
) -> Result<Duration, CudaError> {
    let (driver, mut stopwatch) = (device.driver(), Stopwatch::default());
    // Other streams begin when they are given something.
    driver.wait()?;
    stopwatch.begin(driver)?;
    work()?;
    stopwatch.end(driver)?;
    driver.wait()?;
    Ok(stopwatch.take()? / times.max(1))
}
