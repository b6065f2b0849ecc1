//! One single-stream block: text and image tokens as one sequence, on which attention and feed-forward network work side by side.

use obsdiff_proto::LinearId;

use crate::model::ops::{LinearTensors, Modulation};
use crate::model::stream::{Activation, Attention, BlockContext, Projection};
use crate::model::{Matrix, Tap};
use crate::{Error, Result};

/// Where the shifts, scales and gates lie among the modulation's parts.
mod part {
    pub(super) const SHIFT: usize = 0;
    pub(super) const SCALE: usize = 1;
    pub(super) const GATE: usize = 2;
}

/// A block's part of the model. Linears that can be pruned live in the model's list; here are their ids.
#[derive(Clone, Debug)]
pub(super) struct SingleBlock {
    /// AdaLN: from the conditioning vector to shifts, scales and gates.
    pub(super) modulation: LinearTensors,
    pub(super) attention: Attention,
    /// The feed-forward network's first linear, `proj_mlp`, which reads what the attention reads.
    pub(super) up: LinearId,
    /// `proj_out`, which reads what was attended to and the hidden layer, joined.
    pub(super) output: Projection,
    pub(super) heads: usize,
}

impl SingleBlock {
    /// The tokens after this block, `(batch * tokens) x width`.
    pub(super) fn forward(&self, x: Matrix, shared: BlockContext<'_>, tap: &mut dyn Tap) -> Result<Matrix> {
        let ops = shared.ops;
        let values = ops.linear(shared.conditioning, &self.modulation)?;
        let by = Modulation { values, width: x.columns()? };
        let normed = ops.norm_modulate(&x, &by, part::SHIFT, part::SCALE)?;
        let mut inputs = Activation::new(self.attention.inputs, normed);
        inputs.show(tap)?;

        let hidden = ops.linear_gelu(&inputs.rows, shared.linear(self.up)?)?;
        let projections = self.attention.project(inputs, shared)?.rotated(shared)?;
        let batch = shared.conditioning.rows()?;
        let attended = ops.attention(&[projections.view()], batch, self.heads)?;
        projections.give(ops)?;
        let [attended]: [Matrix; 1] =
            attended.try_into().map_err(|_| Error::Argument("one stream attends to itself".to_owned()))?;
        let mut joined = Activation::new(self.output.site, ops.joined(&attended, &hidden)?);
        ops.give(attended)?;
        ops.give(hidden)?;
        joined.show(tap)?;

        let x = ops.add_gated_linear(x, &joined.rows, shared.linear(self.output.linear)?, &by, part::GATE)?;
        joined.give(ops)?;
        Ok(x)
    }
}
