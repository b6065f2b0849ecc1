//! What a forward call costs.

/// Floating-point operations of the matrix products of one forward call, a multiplication and an addition counted as two.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ForwardFlops {
    /// Those before the first block.
    pub start: f64,
    /// Those of each block, in execution order.
    pub blocks: Vec<f64>,
    /// Those after the last block.
    pub finish: f64,
}

impl ForwardFlops {
    /// Those of the whole call.
    pub fn total(&self) -> f64 {
        self.start + self.blocks.iter().sum::<f64>() + self.finish
    }
}
