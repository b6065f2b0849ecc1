//! How long a GPU works on something, by its own clock: whoever has given it the work does not wait for it.

use std::time::Duration;

use cudarc::driver::CudaEvent;

use super::CudaError;
use super::driver::CudaDriver;

/// Spans of a stream's work.
#[derive(Debug, Default)]
pub(super) struct Stopwatch {
    /// Where each begins and ends. Those past the first `used` are there to be used again.
    spans: Vec<[CudaEvent; 2]>,
    used: usize,
}

impl Stopwatch {
    /// Begins a span before what the driver is given next.
    pub(super) fn begin(&mut self, driver: &CudaDriver) -> Result<(), CudaError> {
        if self.used == self.spans.len() {
            self.spans.push([driver.event(true)?, driver.event(true)?]);
        }
        driver.record(&self.spans[self.used][0])
    }

    /// Ends the span that was begun last behind what the driver was given last.
    pub(super) fn end(&mut self, driver: &CudaDriver) -> Result<(), CudaError> {
        driver.record(&self.spans[self.used][1])?;
        self.used += 1;
        Ok(())
    }

    /// The time of all spans that were ended since it was last asked, once that work is done. They end in their order; what two of them share
    /// counts once.
    pub(super) fn take(&mut self) -> Result<Duration, CudaError> {
        let (mut seconds, mut last) = (0.0, None);
        for [begin, end] in &self.spans[..self.used] {
            let since = |from| CudaDriver::milliseconds(from, end);
            let whole = since(begin)?;
            let own = last.map_or(Ok(whole), since)?.min(whole);
            seconds += 1e-3 * f64::from(own.max(0.0));
            last = Some(end);
        }
        self.used = 0;
        Ok(Duration::from_secs_f64(seconds))
    }
}
