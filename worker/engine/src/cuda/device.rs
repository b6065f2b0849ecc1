//! A GPU that is ready to work.

use std::env;

use obsdiff_proto::MemoryExcess;

use super::CudaError;
use super::driver::CudaDriver;
use super::error::MemoryPhase;
use super::factoriser::Factoriser;
use super::lanes::{Ahead, Lane};
use super::occupied::OccupiedMemory;
use super::overrides::refuse_overrides;
use super::products::Products;
use crate::device::DeviceMemory;
use crate::device::transfers::Transfers;

/// The CUDA version whose PTX the kernels are, as the driver says it.
const CUDA_VERSION: i32 = 13000;

/// The driver as it is missed, and the remedy.
const DRIVER: (&str, &str) =
    ("the NVIDIA driver (libcuda.so.1)", "install it, or run where there is a GPU (--device cpu needs none)");

/// A GPU with its driver, its libraries and obsdiff's kernels. Its work runs in order, on one stream. Beside it runs only what sums of
/// Grams need while they are sent and received, the inverses of a site, for which it waits, and how observations are added to Grams, for which
/// it waits where that matters: see `panels.rs`.
#[derive(Debug)]
pub struct CudaDevice {
    ordinal: usize,
    name: String,
    capability: (i32, i32),
    opening: Option<u64>,
    // Handles go before the driver they belong to.
    products: Products,
    factoriser: Factoriser,
    lanes: Vec<Lane>,
    ahead: Ahead,
    beside: CudaDriver,
    driver: CudaDriver,
}

impl CudaDevice {
    /// Opens a GPU, counted from 0.
    ///
    /// # Errors
    /// When the driver or a library is missing or too old, the environment has libraries compute otherwise, there is no such GPU, or it is
    /// too old; each with its remedy.
    pub fn open(ordinal: usize) -> Result<Self, CudaError> {
        let found = [
            (CudaDriver::is_present(), DRIVER.0, DRIVER.1),
            (
                Products::is_present(),
                "cuBLAS (libcublas.so.13)",
                "install CUDA 13, or `pip install nvidia-cublas`, and name its folder in LD_LIBRARY_PATH",
            ),
            (
                Factoriser::is_present(),
                "cuSOLVER (libcusolver.so.12)",
                "install CUDA 13, or `pip install nvidia-cusolver`, and name its folder in LD_LIBRARY_PATH",
            ),
        ];
        if let Some((_, library, remedy)) = found.into_iter().find(|(present, ..)| !present) {
            return Err(CudaError::Missing { library, remedy });
        }
        refuse_overrides(env::var_os)?;
        let version = CudaDriver::version()?;
        if version < CUDA_VERSION {
            return Err(CudaError::Driver { found: version });
        }
        let count = CudaDriver::count()?;
        if ordinal >= count {
            return Err(CudaError::NoGpu { ordinal, count });
        }
        let (name, capability) = CudaDriver::described(ordinal)?;
        if capability.0 < 8 {
            return Err(CudaError::Capability { ordinal, name, found: capability });
        }
        let occupied = OccupiedMemory::of(ordinal)?;
        let before = occupied.as_ref().and_then(OccupiedMemory::bytes);
        let driver = CudaDriver::open(ordinal)?;
        let opening = |error: CudaError| error.during(MemoryPhase::Opening);
        let products = Products::open(&driver).map_err(opening)?;
        let factoriser = Factoriser::open(&driver).map_err(opening)?;
        let lanes = Lane::open_all(&driver, &factoriser).map_err(opening)?;
        let (beside, ahead) = (driver.beside()?, Ahead::open(&driver)?);
        let after = occupied.as_ref().and_then(OccupiedMemory::bytes);
        let opening = before.zip(after).map(|(before, after)| after.saturating_sub(before));
        Ok(Self { ordinal, name, capability, opening, products, factoriser, lanes, ahead, beside, driver })
    }

    /// How many there are.
    ///
    /// # Errors
    /// When the driver is missing or fails.
    pub fn count() -> Result<usize, CudaError> {
        if !CudaDriver::is_present() {
            return Err(CudaError::Missing { library: DRIVER.0, remedy: DRIVER.1 });
        }
        CudaDriver::count()
    }

    /// Its number, counted from 0.
    pub const fn ordinal(&self) -> usize {
        self.ordinal
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its kind: equal ones give equal bits. Products are cuBLAS's, inverses cuSOLVER's.
    pub fn kind(&self) -> String {
        let [products, inverses] = [self.products.version(), self.factoriser.version()];
        format!("{} with cuBLAS {products} and cuSOLVER {inverses}", self.name)
    }

    /// Its compute capability.
    pub const fn capability(&self) -> (i32, i32) {
        self.capability
    }

    /// Bytes of its memory that were taken while it was opened, by whomever; none where NVML does not say.
    pub(crate) const fn opening_bytes(&self) -> Option<u64> {
        self.opening
    }

    /// Where cuSOLVER was found to work in more of its memory than plans count.
    pub(crate) fn solving_excess(&self) -> Option<MemoryExcess> {
        self.factoriser.excess()
    }

    /// Its memory.
    ///
    /// # Errors
    /// When the driver fails.
    pub fn memory(&self) -> Result<DeviceMemory, CudaError> {
        self.driver.memory()
    }

    /// Gives memory back that is kept for the next buffer.
    pub(crate) fn release_unused(&self) -> Result<(), CudaError> {
        self.driver.release_unused()
    }

    /// What has crossed to and from its memory.
    pub(crate) fn transfers(&self) -> Transfers {
        self.driver.transfers()
    }

    pub(super) const fn driver(&self) -> &CudaDriver {
        &self.driver
    }

    /// The driver with the second stream.
    pub(super) const fn beside(&self) -> &CudaDriver {
        &self.beside
    }

    pub(super) const fn products(&self) -> &Products {
        &self.products
    }

    /// Streams beside the first one.
    pub(super) fn lanes(&self) -> &[Lane] {
        &self.lanes
    }

    /// Streams that go ahead of those.
    pub(super) const fn ahead(&self) -> &Ahead {
        &self.ahead
    }

    pub(super) const fn factoriser(&self) -> &Factoriser {
        &self.factoriser
    }
}
