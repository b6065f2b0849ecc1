//! One token stream of a block, step by step. Between two steps the other stream's part is done, and taps are shown what comes in.

use obsdiff_proto::{LinearId, SiteId};

use super::linears::Linears;
use super::ops::{BlockOps, LinearTensors, Modulation, Parameter, Projected, Rotary};
use super::{Matrix, Tap};
use crate::Result;

/// One stream of a block.
#[derive(Clone, Debug)]
pub(crate) struct StreamBlock {
    /// AdaLN: from the conditioning vector to the stream's shifts, scales and gates.
    pub(crate) modulation: LinearTensors,
    pub(crate) attention: Attention,
    /// The image stream's attention on itself alone, in dual blocks.
    pub(crate) own_attention: Option<Attention>,
    /// Feed-forward network; none where the stream ends at its attention.
    pub(crate) feed_forward: Option<[Projection; 2]>,
}

#[derive(Clone, Debug)]
pub(crate) struct Attention {
    pub(crate) inputs: SiteId,
    pub(crate) projections: [LinearId; 3],
    /// RMS norms of queries and keys, a head wide each.
    pub(crate) norms: Option<[Parameter; 2]>,
    /// None where nobody reads what the stream attends to.
    pub(crate) output: Option<Projection>,
}

/// A linear with the site it reads alone.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Projection {
    pub(crate) site: SiteId,
    pub(crate) linear: LinearId,
}

/// Where a stream's shifts, scales and gates lie among its modulation's parts, as diffusers orders them.
mod part {
    pub(crate) const SHIFT: usize = 0;
    pub(crate) const SCALE: usize = 1;
    pub(crate) const GATE: usize = 2;
    pub(crate) const FFN_SHIFT: usize = 3;
    pub(crate) const FFN_SCALE: usize = 4;
    pub(crate) const FFN_GATE: usize = 5;
    pub(crate) const OWN_SHIFT: usize = 6;
    pub(crate) const OWN_SCALE: usize = 7;
    pub(crate) const OWN_GATE: usize = 8;
    /// A stream that ends here has a scale and a shift only, in this order.
    pub(crate) const LAST_SCALE: usize = 0;
    pub(crate) const LAST_SHIFT: usize = 1;
}

/// What every block of a forward call reads.
#[derive(Clone, Copy)]
pub(crate) struct BlockContext<'a> {
    pub(crate) ops: &'a dyn BlockOps,
    pub(crate) linears: &'a Linears,
    /// `batch x width`: SiLU of the conditioning vector.
    pub(crate) conditioning: &'a Matrix,
    /// The rotary embedding of the queries and keys of image tokens, where the architecture has one.
    pub(crate) rotary: Option<&'a Rotary<Matrix>>,
}

impl BlockContext<'_> {
    pub(crate) fn linear(&self, id: LinearId) -> Result<&LinearTensors> {
        self.linears.get(id)
    }
}

/// What a site's linears read.
pub(crate) struct Activation {
    site: SiteId,
    pub(crate) rows: Matrix,
    seen: bool,
}

impl Activation {
    pub(crate) fn new(site: SiteId, rows: Matrix) -> Self {
        Self { site, rows, seen: false }
    }

    pub(crate) fn show(&mut self, tap: &mut dyn Tap) -> Result<()> {
        self.seen = tap.wants(self.site);
        if self.seen { tap.observe(self.site, &self.rows) } else { Ok(()) }
    }

    /// Lets go of it. A tap may still hold what it has seen, so only the others' buffers are used again.
    pub(crate) fn give(self, ops: &dyn BlockOps) -> Result<()> {
        if self.seen { Ok(()) } else { ops.give(self.rows) }
    }
}

/// A stream as it enters a block.
pub(crate) struct BlockInput {
    pub(crate) by: Modulation<Matrix>,
    pub(crate) inputs: Activation,
    pub(crate) own_inputs: Option<Activation>,
}

/// Queries, keys and values that an attention's inputs became.
pub(crate) struct Projections {
    queries: Option<Matrix>,
    keys: Matrix,
    values: Matrix,
}

impl Projections {
    pub(crate) fn view(&self) -> Projected<'_, Matrix> {
        Projected { queries: self.queries.as_ref(), keys: &self.keys, values: &self.values }
    }

    /// With the queries and keys of image tokens turned by their places.
    pub(crate) fn rotated(self, shared: BlockContext<'_>) -> Result<Self> {
        let Some(rotary) = shared.rotary else { return Ok(self) };
        let batch = shared.conditioning.rows()?;
        let turn = |x: Matrix| shared.ops.rotate(x, rotary, batch);
        Ok(Self { queries: self.queries.map(turn).transpose()?, keys: turn(self.keys)?, ..self })
    }

    pub(crate) fn give(self, ops: &dyn BlockOps) -> Result<()> {
        self.queries.into_iter().chain([self.keys, self.values]).try_for_each(|rows| ops.give(rows))
    }
}

impl StreamBlock {
    /// From the stream (`rows x width`) to the inputs of its attentions.
    pub(crate) fn enter(&self, x: &Matrix, shared: BlockContext<'_>) -> Result<BlockInput> {
        let values = shared.ops.linear(shared.conditioning, &self.modulation)?;
        let by = Modulation { values, width: x.columns()? };
        let normed = |attention: &Attention, shift, scale| -> Result<Activation> {
            Ok(Activation::new(attention.inputs, shared.ops.norm_modulate(x, &by, shift, scale)?))
        };
        let inputs = match self.feed_forward {
            Some(_) => normed(&self.attention, part::SHIFT, part::SCALE)?,
            None => normed(&self.attention, part::LAST_SHIFT, part::LAST_SCALE)?,
        };
        let own = self.own_attention.as_ref();
        let own_inputs = own.map(|own| normed(own, part::OWN_SHIFT, part::OWN_SCALE)).transpose()?;
        Ok(BlockInput { by, inputs, own_inputs })
    }

    /// What each attention's inputs gave, added to the stream; and the inputs of the feed-forward network, if there is one.
    pub(crate) fn leave_attention(
        &self,
        mut x: Matrix,
        attended: [Option<Activation>; 2],
        by: &Modulation<Matrix>,
        shared: BlockContext<'_>,
    ) -> Result<(Matrix, Option<Activation>)> {
        let [joint, own] = attended;
        x = self.attention.add_output(x, joint, by, part::GATE, shared)?;
        if let Some(attention) = &self.own_attention {
            x = attention.add_output(x, own, by, part::OWN_GATE, shared)?;
        }
        let Some([up, _]) = self.feed_forward else { return Ok((x, None)) };
        let normed = shared.ops.norm_modulate(&x, by, part::FFN_SHIFT, part::FFN_SCALE)?;
        Ok((x, Some(Activation::new(up.site, normed))))
    }

    /// The feed-forward network's hidden layer.
    pub(crate) fn up(
        &self,
        inputs: Option<Activation>,
        shared: BlockContext<'_>,
    ) -> Result<Option<Activation>> {
        let (Some([up, down]), Some(inputs)) = (self.feed_forward, inputs) else { return Ok(None) };
        let hidden = shared.ops.linear_gelu(&inputs.rows, shared.linear(up.linear)?)?;
        inputs.give(shared.ops)?;
        Ok(Some(Activation::new(down.site, hidden)))
    }

    /// The stream after its feed-forward network.
    pub(crate) fn down(
        &self,
        x: Matrix,
        hidden: Option<Activation>,
        by: &Modulation<Matrix>,
        shared: BlockContext<'_>,
    ) -> Result<Matrix> {
        let (Some([_, down]), Some(hidden)) = (self.feed_forward, hidden) else { return Ok(x) };
        let x =
            shared.ops.add_gated_linear(x, &hidden.rows, shared.linear(down.linear)?, by, part::FFN_GATE)?;
        hidden.give(shared.ops)?;
        Ok(x)
    }
}

impl Attention {
    pub(crate) fn project(&self, inputs: Activation, shared: BlockContext<'_>) -> Result<Projections> {
        let (ops, rows) = (shared.ops, &inputs.rows);
        let [q, k, v] = self.projections;
        let norm = |i: usize| self.norms.as_ref().map(|norms| &norms[i]);
        let queries = || match self.output {
            Some(_) => Ok(Some(ops.linear_head_norm(rows, shared.linear(q)?, norm(0))?)),
            None => Ok(None),
        };
        let keys = || ops.linear_head_norm(rows, shared.linear(k)?, norm(1));
        let values = || ops.linear(rows, shared.linear(v)?);
        let (queries, (keys, values)) = ops.both(queries, || ops.both(keys, values))?;
        inputs.give(ops)?;
        Ok(Projections { queries, keys, values })
    }

    /// The site that what was attended to comes in at, if anybody reads it.
    pub(crate) fn attended(&self, rows: Option<Matrix>) -> Option<Activation> {
        self.output.zip(rows).map(|(output, rows)| Activation::new(output.site, rows))
    }

    fn add_output(
        &self,
        residual: Matrix,
        attended: Option<Activation>,
        by: &Modulation<Matrix>,
        gate: usize,
        shared: BlockContext<'_>,
    ) -> Result<Matrix> {
        let (Some(output), Some(attended)) = (self.output, attended) else { return Ok(residual) };
        let x =
            shared.ops.add_gated_linear(residual, &attended.rows, shared.linear(output.linear)?, by, gate)?;
        attended.give(shared.ops)?;
        Ok(x)
    }
}
