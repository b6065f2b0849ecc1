//! What people see of an engine's work.

use obsdiff_engine::export::PrunedLinear;

/// Receives the progress of the work, to show it to people.
pub trait Watch: Send + Sync {
    /// So many prompt steps of a pilot or of calibration are done.
    fn steps(&self, prompts: u64);
    /// So many slices of linears, or structures, are solved or surveyed.
    fn solved(&self, count: u64);
    /// A survey expects this relative error of the pruned model's velocity.
    fn expected(&self, velocity_error: f64);
    /// All linears that are pruned so far, whenever finished packages have been applied.
    fn pruned(&self, _linears: &[PrunedLinear]) {}
}
