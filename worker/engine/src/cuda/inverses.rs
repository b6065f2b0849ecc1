//! The inverses by which alternating directions solve: (A + rho I)^-1 of each penalty rho.

use std::time::Duration;

use obsdiff_proto::Precision;

use super::driver::{CudaDriver, DeviceBuffer};
use super::factoriser::Routine;
use super::kernels::Launch;
use super::lanes::{Crossings, Lane};
use super::stopwatch::Stopwatch;
use super::{CudaDevice, CudaError};
use crate::device::memory::LANES;
use crate::solve::SolveError;

/// The inverse for each penalty, whole and symmetric, of a scaled Gram A (`n x n`): in f32 and, where that fails or is not asked for, in f64.
/// n^3 operations each.
pub(super) fn inverses(
    device: &CudaDevice,
    square: &DeviceBuffer<f32>,
    n: usize,
    penalties: &[f64],
    precision: Precision,
) -> Result<Vec<DeviceBuffer<f32>>, SolveError> {
    let mut inverses = Vec::with_capacity(penalties.len());
    for some in penalties.chunks(LANES) {
        let narrow = match precision {
            Precision::F32 => in_f32(device, square, n, some)?,
            Precision::F64 => some.iter().map(|_| None).collect(),
        };
        for (inverse, rho) in narrow.into_iter().zip(some) {
            inverses.push(match inverse {
                Some(inverse) => inverse,
                None => in_f64(device, square, n, *rho)?.ok_or(SolveError::NotPositive { damping: *rho })?,
            });
        }
    }
    Ok(inverses)
}

/// Of as many penalties as there are lanes, side by side. Nothing where it fails.
fn in_f32(
    device: &CudaDevice,
    square: &DeviceBuffer<f32>,
    n: usize,
    penalties: &[f64],
) -> Result<Vec<Option<DeviceBuffer<f32>>>, CudaError> {
    let driver = device.driver();
    let mut squares = damped(driver, square, n, penalties)?;
    let (crossings, lanes) = (Crossings::new(driver)?, &device.lanes()[..penalties.len()]);
    crossings.ready(driver, lanes)?;
    let inverted = inverted(lanes, &mut squares, n);
    // Also where that failed: what lanes work in must not go.
    crossings.join(driver, lanes)?;
    let mut inverses = Vec::with_capacity(penalties.len());
    for (mut inverse, is_sound) in squares.into_iter().zip(inverted?) {
        if is_sound {
            driver.mirror_upper_f32(Launch::tiles(n, n, 32), inverse.output(), n)?;
        }
        inverses.push(is_sound.then_some(inverse));
    }
    Ok(inverses)
}

/// A + rho I of each penalty.
fn damped(
    driver: &CudaDriver,
    square: &DeviceBuffer<f32>,
    n: usize,
    penalties: &[f64],
) -> Result<Vec<DeviceBuffer<f32>>, CudaError> {
    let mut squares = Vec::with_capacity(penalties.len());
    for rho in penalties {
        let mut damped = driver.buffer::<f32>(n * n)?;
        driver.copy(square, &mut damped, n * n)?;
        driver.set_diagonal_f32(Launch::each(n), damped.output(), n, (1.0 + rho) as f32)?;
        squares.push(damped);
    }
    Ok(squares)
}

/// How long a GPU takes for the factors of all penalties, and for the inverses from them: side by side in lanes, as [`inverses`] has them,
/// but all factors first.
pub(super) fn inverse_times(
    device: &CudaDevice,
    square: &DeviceBuffer<f32>,
    n: usize,
    penalties: &[f64],
) -> Result<[Duration; 2], CudaError> {
    let (driver, crossings) = (device.driver(), Crossings::new(device.driver())?);
    let (mut factoring, mut inverting) = (Stopwatch::default(), Stopwatch::default());
    for some in penalties.chunks(LANES) {
        let (mut squares, lanes) = (damped(driver, square, n, some)?, &device.lanes()[..some.len()]);
        for (routine, stopwatch) in [(Routine::Factorise, &mut factoring), (Routine::Invert, &mut inverting)]
        {
            stopwatch.begin(driver)?;
            crossings.ready(driver, lanes)?;
            let given = lanes.iter().zip(&mut squares).try_for_each(|(lane, square)| {
                lane.factoriser.begin(&lane.driver, square, n, &[routine]).map(drop)
            });
            // Also where that failed: what lanes work in must not go.
            crossings.join(driver, lanes)?;
            given?;
            stopwatch.end(driver)?;
        }
    }
    driver.wait()?;
    Ok([factoring.take()?, inverting.take()?])
}

/// Replaces the upper triangle of each square by that of its inverse, each in a lane of its own. Whether it was positive definite.
fn inverted(lanes: &[Lane], squares: &mut [DeviceBuffer<f32>], n: usize) -> Result<Vec<bool>, CudaError> {
    let mut begun = Vec::with_capacity(squares.len());
    for (lane, square) in lanes.iter().zip(&mut *squares) {
        begun.push(lane.factoriser.begin(&lane.driver, square, n, &[Routine::Factorise, Routine::Invert])?);
    }
    let ends = begun.into_iter().zip(lanes).zip(squares);
    ends.map(|((begun, lane), square)| begun.end(&lane.driver, square, n)).collect()
}

/// Of one penalty. Nothing where it fails.
fn in_f64(
    device: &CudaDevice,
    square: &DeviceBuffer<f32>,
    n: usize,
    rho: f64,
) -> Result<Option<DeviceBuffer<f32>>, CudaError> {
    let (driver, factoriser) = (device.driver(), device.factoriser());
    let mut inverse = driver.buffer::<f32>(n * n)?;
    let mut wide = driver.buffer::<f64>(n * n)?;
    driver.widen_square(Launch::blocks(1024), square.input(), wide.output(), (n * n) as u64)?;
    driver.set_diagonal_f64(Launch::each(n), wide.output(), n, 1.0 + rho)?;
    if !factoriser
        .begin(driver, &mut wide, n, &[Routine::Factorise, Routine::Invert])?
        .end(driver, &wide, n)?
    {
        return Ok(None);
    }
    driver.narrow_upper(Launch::tiles(n, n, 32), wide.input(), inverse.output(), n)?;
    Ok(Some(inverse))
}
