//! Factorisations and inverses, by cuSOLVER. One of six files that call foreign code.
#![allow(unsafe_code)]

use std::ptr::null_mut;
use std::sync::{Arc, Mutex, OnceLock};

use cudarc::cusolver::sys as solver;
use obsdiff_proto::{ByteSize, MemoryExcess, lock};

use super::CudaError;
use super::driver::{CudaDriver, DeviceBuffer, In, Out};
use super::factorised::Factorised;
use super::kernels::Launch;
use super::products::number;
use crate::device::memory::factorisation_bytes;
use crate::device::transfers::TransferKind;

/// What cuSOLVER may work in for the smallest matrices, which plans count with the libraries' own memory: 4 MiB.
const SMALL_WORKSPACE: u64 = 4 << 20;

/// cuSOLVER on one stream.
#[derive(Debug)]
pub(super) struct Factoriser {
    handle: Mutex<Handle>,
    /// Of cuSOLVER, as it says it: 12000 for 12.0.
    version: i32,
    /// Where cuSOLVER was first found to work in more memory than plans count, on any stream.
    excess: Arc<OnceLock<MemoryExcess>>,
}

/// A routine of cuSOLVER, which changes a square in its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Routine {
    /// Its upper triangle becomes that of U, with U^T U.
    Factorise,
    /// A factor's upper triangle becomes that of (U^T U)^-1.
    Invert,
}

/// Routines that a GPU was given, and what cuSOLVER works in meanwhile. Dropped before they are done, it is given back after them.
#[derive(Debug)]
pub(super) struct Begun<T> {
    _workspace: DeviceBuffer<T>,
    infos: DeviceBuffer<i32>,
}

#[derive(Debug)]
struct Handle(solver::cusolverDnHandle_t);

// SAFETY: cuSOLVER allows a handle to move between threads; a mutex lets one thread at a time use it.
unsafe impl Send for Handle {}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: the handle is the one that cuSOLVER made, or null where it made none. Nothing can be done about a failure: the process is
        // about to end or the GPU is lost.
        unsafe {
            if !self.0.is_null() {
                let _ = solver::cusolverDnDestroy(self.0);
            }
        }
    }
}

impl Factoriser {
    /// Whether cuSOLVER is on this machine.
    pub(super) fn is_present() -> bool {
        // SAFETY: it loads a library by its usual name, whose initialisers are NVIDIA's.
        unsafe { solver::is_culib_present() }
    }

    /// Factorisations on the driver's stream.
    pub(super) fn open(driver: &CudaDriver) -> Result<Self, CudaError> {
        driver.bind()?;
        let mut handle = Handle(null_mut());
        let mut version = 0;
        // SAFETY: the handle is written before it is used; the stream lives as long as it does.
        unsafe {
            solved("cusolverGetVersion", solver::cusolverGetVersion(&raw mut version))?;
            solved("cusolverDnCreate", solver::cusolverDnCreate(&raw mut handle.0))?;
            let stream = driver.stream().cu_stream().cast();
            solved("cusolverDnSetStream", solver::cusolverDnSetStream(handle.0, stream))?;
            let same_bits = solver::cusolverDeterministicMode_t::CUSOLVER_DETERMINISTIC_RESULTS;
            let mode = solver::cusolverDnSetDeterministicMode(handle.0, same_bits);
            solved("cusolverDnSetDeterministicMode", mode)?;
        }
        Ok(Self { handle: Mutex::new(handle), version, excess: Arc::default() })
    }

    /// The version of cuSOLVER, as it says it: 12000 for 12.0.
    pub(super) const fn version(&self) -> i32 {
        self.version
    }

    /// The same on the stream of another driver.
    pub(super) fn beside(&self, driver: &CudaDriver) -> Result<Self, CudaError> {
        Ok(Self { excess: Arc::clone(&self.excess), ..Self::open(driver)? })
    }

    /// Factorises the upper triangle of a square (n x n) in place: U^T U. False when a pivot fails or is not finite; the triangle is of no use
    /// then.
    pub(super) fn factorise<T: Factorised>(
        &self,
        driver: &CudaDriver,
        square: &mut DeviceBuffer<T>,
        n: usize,
    ) -> Result<bool, CudaError> {
        self.begin(driver, square, n, &[Routine::Factorise])?.end(driver, square, n)
    }

    /// Replaces the factor by the upper triangle of (U^T U)^-1. False when a pivot is 0, or the diagonal is not finite then.
    pub(super) fn invert<T: Factorised>(
        &self,
        driver: &CudaDriver,
        square: &mut DeviceBuffer<T>,
        n: usize,
    ) -> Result<bool, CudaError> {
        self.begin(driver, square, n, &[Routine::Invert])?.end(driver, square, n)
    }

    /// Gives the stream `routines` to run on a square (n x n), one after another. The driver is the one that this was opened on.
    pub(super) fn begin<T: Factorised>(
        &self,
        driver: &CudaDriver,
        square: &mut DeviceBuffer<T>,
        n: usize,
        routines: &[Routine],
    ) -> Result<Begun<T>, CudaError> {
        driver.bind()?;
        let handle = lock(&self.handle);
        let (size, place) = (number(n)?, square.output().pointer as *mut T);
        let length = T::workspace(handle.0, size, place)?;
        self.compare_workspace::<T>(n, length as u64 * size_of::<T>() as u64);
        let mut workspace = driver.buffer::<T>(length as usize)?;
        let mut infos = driver.zeros::<i32>(routines.len())?;
        let work = (workspace.output().pointer as *mut T, length);
        for (at, routine) in routines.iter().enumerate() {
            T::call(*routine, handle.0, size, place, work, infos.output_from(at).pointer as *mut i32)?;
        }
        Ok(Begun { _workspace: workspace, infos })
    }

    /// Where cuSOLVER was first found to work in more memory than plans count.
    pub(super) fn excess(&self) -> Option<MemoryExcess> {
        self.excess.get().copied()
    }

    /// Warns where cuSOLVER works in more memory than plans count, once.
    fn compare_workspace<T>(&self, n: usize, wanted: u64) {
        let planned = factorisation_bytes(n, size_of::<T>());
        let excess = MemoryExcess { taken: wanted, planned };
        if wanted > planned + SMALL_WORKSPACE && self.excess.set(excess).is_ok() {
            let [wanted, planned] = [wanted, planned].map(ByteSize);
            tracing::warn!(
                "cuSOLVER works in {wanted} for a matrix of {n} x {n}, but plans count {planned}: leave so much more free than they predict"
            );
        }
    }
}

impl<T: Factorised> Begun<T> {
    /// Waits until they are done with this square. False when a pivot failed, or the diagonal is not positive and finite.
    pub(super) fn end(
        self,
        driver: &CudaDriver,
        square: &DeviceBuffer<T>,
        n: usize,
    ) -> Result<bool, CudaError> {
        let mut said = vec![0; self.infos.len()];
        driver.read(TransferKind::Figures, &self.infos, &mut said)?;
        if let Some(info) = said.iter().find(|info| **info < 0) {
            let problem = format!("argument {} is invalid", -info);
            return Err(CudaError::Call { call: "cuSOLVER", problem });
        }
        Ok(said.iter().all(|info| *info == 0) && is_sound(driver, square, n)?)
    }
}

/// Whether the diagonal of a factor or of an inverse is positive and finite. cuSOLVER takes a pivot that is NaN for none that fails, and from
/// there on all of a factor is NaN.
fn is_sound<T: Factorised>(
    driver: &CudaDriver,
    square: &DeviceBuffer<T>,
    n: usize,
) -> Result<bool, CudaError> {
    // The kernel copies values of four bytes.
    let words = size_of::<T>() / size_of::<f32>();
    let mut on_device = driver.buffer::<T>(n)?;
    let (from, to) = (In::at(square.input().pointer), Out::at(on_device.output().pointer));
    // The diagonal is every (n + 1)-th value.
    driver.copy_columns(Launch::matrix(n, words), from, to, n, words, words * (n + 1))?;
    let mut diagonal = vec![T::default(); n];
    driver.read(TransferKind::Figures, &on_device, &mut diagonal)?;
    Ok(diagonal.into_iter().map(Into::into).all(|x: f64| x > 0.0 && x.is_finite()))
}

pub(super) fn solved(call: &'static str, status: solver::cusolverStatus_t) -> Result<(), CudaError> {
    match status {
        solver::cusolverStatus_t::CUSOLVER_STATUS_SUCCESS => Ok(()),
        _ => Err(CudaError::Call { call, problem: format!("{status:?}") }),
    }
}
