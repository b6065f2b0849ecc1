//! The pool that memory of a GPU comes from. One of six files that call foreign code.
#![allow(unsafe_code)]

use cudarc::driver::result::{device, mem_pool};
use cudarc::driver::sys::{CUmemPool_attribute as Attribute, CUmemoryPool};

use super::CudaError;
use super::driver::failed;

/// A GPU's default pool. Buffers come from it, and what is given back is kept there for the next one.
pub(super) struct Pool(CUmemoryPool);

impl Pool {
    /// That of a GPU, counted from 0.
    pub(super) fn of(ordinal: usize) -> Result<Self, CudaError> {
        let gpu = device::get(ordinal as i32).map_err(failed("cuDeviceGet"))?;
        // SAFETY: the device is one that cuDeviceGet has just given.
        unsafe { device::get_default_mem_pool(gpu) }.map(Self).map_err(failed("cuDeviceGetDefaultMemPool"))
    }

    /// Lets the driver keep memory that was given back for the next buffer: activations come and go with every operation.
    pub(super) fn keep_freed(&self) -> Result<(), CudaError> {
        self.set(Attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, u64::MAX)
    }

    /// Gives back what is kept for the next buffer, and forgets the most that was in use.
    pub(super) fn release_unused(&self) -> Result<(), CudaError> {
        // SAFETY: the pool lives as long as the driver.
        unsafe { mem_pool::trim_to(self.0, 0) }.map_err(failed("cuMemPoolTrimTo"))?;
        // The driver takes nothing but 0 here.
        self.set(Attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH, 0)
    }

    /// Bytes that the pool holds: those in use and those kept for the next buffer.
    pub(super) fn reserved(&self) -> Result<u64, CudaError> {
        self.get(Attribute::CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT)
    }

    /// Bytes in use.
    pub(super) fn used(&self) -> Result<u64, CudaError> {
        self.get(Attribute::CU_MEMPOOL_ATTR_USED_MEM_CURRENT)
    }

    /// The most bytes that were in use since [`Self::release_unused`].
    pub(super) fn most_used(&self) -> Result<u64, CudaError> {
        self.get(Attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH)
    }

    fn get(&self, attribute: Attribute) -> Result<u64, CudaError> {
        let mut value = 0u64;
        // SAFETY: the pool lives as long as the driver, and these attributes are numbers of 64 bits.
        unsafe { mem_pool::get_attribute(self.0, attribute, (&raw mut value).cast()) }
            .map_err(failed("cuMemPoolGetAttribute"))?;
        Ok(value)
    }

    fn set(&self, attribute: Attribute, mut value: u64) -> Result<(), CudaError> {
        // SAFETY: as in `get`.
        unsafe { mem_pool::set_attribute(self.0, attribute, (&raw mut value).cast()) }
            .map_err(failed("cuMemPoolSetAttribute"))
    }
}
