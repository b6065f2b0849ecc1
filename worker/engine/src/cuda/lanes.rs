//! Streams on which work that does not depend on each other is done side by side: the panels of an observation's product, and the inverses of
//! a site.
//!
//! A product of a few hundred rows leaves part of a GPU idle at its end; a factorisation has columns that only few threads can work at. Work of
//! other lanes fills that. Adding a product to sums waits for memory, and products wait for tensor cores: both are done at a time where they
//! are on different multiprocessors. A product's blocks fill each multiprocessor that they come to, so what adds goes ahead of them, with few
//! blocks. No bit depends on how many lanes there are: each panel has its own product and its own sums, each inverse its own factor.

use cudarc::driver::CudaEvent;

use super::CudaError;
use super::driver::CudaDriver;
use super::factoriser::Factoriser;
use super::products::Products;
use crate::device::memory::LANES;

/// A stream beside the first one, with products and factorisations of its own.
#[derive(Debug)]
pub(super) struct Lane {
    // Handles go before the stream they work on.
    pub(super) products: Products,
    pub(super) factoriser: Factoriser,
    pub(super) driver: CudaDriver,
}

impl Lane {
    /// As many as work side by side.
    pub(super) fn open_all(driver: &CudaDriver, factoriser: &Factoriser) -> Result<Vec<Self>, CudaError> {
        let open = |_| {
            let driver = driver.beside()?;
            let factoriser = factoriser.beside(&driver)?;
            Ok(Self { products: Products::open(&driver)?, factoriser, driver })
        };
        (0..LANES).map(open).collect()
    }
}

/// Streams that go ahead of the lanes. With these a GPU has eight, as many as its driver has queues for.
#[derive(Debug)]
pub(super) struct Ahead {
    /// Where observations are judged.
    pub(super) judging: CudaDriver,
    /// Where panels are added in turn: one begins while the last one's blocks end.
    pub(super) adding: [CudaDriver; 2],
}

impl Ahead {
    pub(super) fn open(driver: &CudaDriver) -> Result<Self, CudaError> {
        Ok(Self { judging: driver.ahead()?, adding: [driver.ahead()?, driver.ahead()?] })
    }
}

/// Where the first stream and the lanes wait for each other.
#[derive(Debug)]
pub(super) struct Crossings {
    ready: CudaEvent,
    done: CudaEvent,
}

impl Crossings {
    pub(super) fn new(driver: &CudaDriver) -> Result<Self, CudaError> {
        Ok(Self { ready: driver.event(false)?, done: driver.event(false)? })
    }

    /// What the first stream was given so far may be worked with once it is done.
    pub(super) fn ready(&self, driver: &CudaDriver, lanes: &[Lane]) -> Result<(), CudaError> {
        driver.record(&self.ready)?;
        lanes.iter().try_for_each(|lane| lane.driver.wait_for(&self.ready))
    }

    /// Has the first stream wait for all that lanes were given.
    pub(super) fn join(&self, driver: &CudaDriver, lanes: &[Lane]) -> Result<(), CudaError> {
        lanes.iter().try_for_each(|lane| {
            lane.driver.record(&self.done)?;
            driver.wait_for(&self.done)
        })
    }
}
