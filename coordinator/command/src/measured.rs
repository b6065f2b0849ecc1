//! What a worker of this process measures of its own work, for those who watch the job.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use obsdiff_engine::device::ComputeDevice;
use obsdiff_engine::export::PrunedLinear;
use obsdiff_proto::{GpuMemory, Measures, PrunedSoFar, lock};
use obsdiff_worker::device::Watch;

use crate::run::peak_resident;
use crate::spans::Spans;

/// Gathers what a worker has done since its process started.
pub(crate) struct WorkerMeasurements {
    spans: Spans,
    prompt_steps: AtomicU64,
    /// Bytes that it gave to reductions.
    pub(crate) reduced: Arc<AtomicU64>,
    /// What is known of the job once it is opened here.
    job: OnceLock<JobNumbers>,
    pruned: Mutex<PrunedSoFar>,
    device: ComputeDevice,
    /// The device's own memory when its thread last looked.
    gpu_memory: Mutex<Option<GpuMemory>>,
}

struct JobNumbers {
    /// Bytes that the plan expects at most.
    planned_memory: u64,
    /// The damping that the job asks for.
    damping: f64,
}

impl WorkerMeasurements {
    /// Nothing is done yet. Times are those of `spans`, work is done on `device`.
    pub(crate) fn new(spans: Spans, device: ComputeDevice) -> Self {
        let measured = Self {
            spans,
            prompt_steps: AtomicU64::new(0),
            reduced: Arc::default(),
            job: OnceLock::new(),
            pruned: Mutex::default(),
            device,
            gpu_memory: Mutex::default(),
        };
        measured.look_at_memory();
        measured
    }

    /// Looks how much of the device's memory is used. Called by the thread that owns the device, so that none that speaks with the coordinator
    /// waits for a driver.
    fn look_at_memory(&self) {
        match self.device.memory() {
            Ok(memory) => {
                let gpu = memory.map(|memory| GpuMemory {
                    used: memory.total.saturating_sub(memory.free),
                    total: memory.total,
                });
                *lock(&self.gpu_memory) = gpu;
            }
            // Whatever is wrong with the device is reported by the work that needs it.
            Err(error) => tracing::debug!(%error, "the device's memory is not known"),
        }
    }

    /// Takes note of the job: the bytes of memory that its plan expects, and the damping that it asks for.
    pub(crate) fn open(&self, planned_memory: u64, damping: f64) {
        // A worker opens one job only.
        let _ = self.job.set(JobNumbers { planned_memory, damping });
    }

    /// All of it, as the coordinator gets it.
    pub(crate) fn measures(&self) -> Measures {
        let spans = self.spans.report();
        Measures {
            prompt_steps: self.prompt_steps.load(Ordering::Relaxed),
            forward: spans.time("forward"),
            gram: spans.time("gram"),
            solve: ["solve", "refine", "probe"].map(|name| spans.time(name)).into_iter().sum(),
            reduced_bytes: self.reduced.load(Ordering::Relaxed),
            peak_memory: peak_resident().map(|peak| peak.0),
            planned_memory: self.job.get().map(|job| job.planned_memory),
            gpu_memory: *lock(&self.gpu_memory),
            opening_excess: self.device.opening_excess(),
            solving_excess: self.device.solving_excess(),
            pruned: *lock(&self.pruned),
        }
    }
}

impl Watch for WorkerMeasurements {
    fn steps(&self, prompts: u64) {
        self.prompt_steps.fetch_add(prompts, Ordering::Relaxed);
        self.look_at_memory();
    }

    fn solved(&self, _: u64) {
        self.look_at_memory();
    }

    fn expected(&self, _: f64) {}

    fn pruned(&self, linears: &[PrunedLinear]) {
        let asked = self.job.get().map_or(f64::INFINITY, |job| job.damping);
        *lock(&self.pruned) = so_far(linears, asked);
    }
}

/// What linears have become that were to be solved with this damping.
fn so_far(linears: &[PrunedLinear], asked: f64) -> PrunedSoFar {
    let errors: Vec<f64> = linears.iter().filter_map(|linear| linear.relative_error).collect();
    let raised = linears.iter().filter(|linear| linear.damping.is_some_and(|found| found > asked));
    PrunedSoFar {
        linears: linears.len() as u64,
        weights: linears.iter().map(|linear| linear.shape.iter().product::<usize>() as u64).sum(),
        zeros: linears.iter().map(|linear| linear.zeros).sum(),
        raised: raised.count() as u64,
        measured: errors.len() as u64,
        error_billionths: errors.iter().map(|error| (error * 1e9) as u64).sum(),
    }
}

#[cfg(test)]
mod tests {
    use obsdiff_proto::Target;

    use super::*;

    fn linear(zeros: u64, damping: Option<f64>, relative_error: Option<f64>) -> PrunedLinear {
        PrunedLinear {
            name: "l".to_owned(),
            shape: [4, 8],
            target: Target::NToM { n: 2, m: 4 },
            package: 0,
            zeros,
            damping,
            gram_trace: None,
            unrefined_error: None,
            relative_error,
            cost: None,
        }
    }

    #[test]
    fn linears_add_up_and_a_damping_that_was_asked_for_is_not_raised() {
        let linears =
            [linear(16, Some(0.01), Some(0.25)), linear(8, Some(0.1), Some(0.5)), linear(0, None, None)];
        let expected = PrunedSoFar {
            linears: 3,
            weights: 96,
            zeros: 24,
            raised: 1,
            measured: 2,
            error_billionths: 750_000_000,
        };
        assert_eq!(so_far(&linears, 0.01), expected);
    }
}
