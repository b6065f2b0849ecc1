//! One joint block: image and text tokens attend to each other, then each stream passes its own feed-forward network.

use candle_core::Tensor;
use obsdiff_proto::{Inventory, LinearId, SiteId, UnitKind};

use super::super::Tap;
use super::super::ops::{Linear, Modulation, Ops, Projected};
use super::Sd3Config;
use super::loading::Loader;
use crate::{Error, Result};

/// A block's part of the model. Linears that can be pruned live in the model's list; here are their ids.
#[derive(Debug)]
pub(super) struct JointBlock {
    image: StreamBlock,
    text: StreamBlock,
    heads: usize,
}

/// One stream of a block.
#[derive(Debug)]
struct StreamBlock {
    /// AdaLN: from the conditioning vector to the stream's shifts, scales and gates.
    modulation: Linear,
    attention: Attention,
    /// The image stream's attention on itself alone, in dual blocks.
    own_attention: Option<Attention>,
    /// Feed-forward network; none where the stream ends at its attention.
    feed_forward: Option<[Projection; 2]>,
}

#[derive(Debug)]
struct Attention {
    inputs: SiteId,
    projections: [LinearId; 3],
    /// RMS norms of queries and keys, a head wide each.
    norms: Option<[Tensor; 2]>,
    /// None where nobody reads what the stream attends to.
    output: Option<Projection>,
}

/// A linear with the site it reads alone.
#[derive(Clone, Copy, Debug)]
struct Projection {
    site: SiteId,
    linear: LinearId,
}

/// Where a stream's shifts, scales and gates lie among its modulation's parts, as diffusers orders them.
mod part {
    pub(super) const SHIFT: usize = 0;
    pub(super) const SCALE: usize = 1;
    pub(super) const GATE: usize = 2;
    pub(super) const FFN_SHIFT: usize = 3;
    pub(super) const FFN_SCALE: usize = 4;
    pub(super) const FFN_GATE: usize = 5;
    pub(super) const OWN_SHIFT: usize = 6;
    pub(super) const OWN_SCALE: usize = 7;
    pub(super) const OWN_GATE: usize = 8;
    /// A stream that ends here has a scale and a shift only, in this order.
    pub(super) const LAST_SCALE: usize = 0;
    pub(super) const LAST_SHIFT: usize = 1;
}

/// Queries, keys and values that an attention's inputs became.
struct Projections {
    queries: Option<Tensor>,
    keys: Tensor,
    values: Tensor,
}

impl Projections {
    fn view(&self) -> Projected<'_> {
        Projected { queries: self.queries.as_ref(), keys: &self.keys, values: &self.values }
    }

    fn give(self, pass: &Pass<'_>) -> Result<()> {
        self.queries.into_iter().chain([self.keys, self.values]).try_for_each(|rows| pass.ops.give(rows))
    }
}

/// What a forward call carries past every block.
pub(super) struct Pass<'a> {
    pub(super) ops: &'a Ops,
    pub(super) linears: &'a [Linear],
    /// `batch x width`: SiLU of the conditioning vector.
    pub(super) conditioning: &'a Tensor,
    pub(super) tap: &'a mut dyn Tap,
}

impl Pass<'_> {
    fn linear(&self, id: LinearId) -> Result<&Linear> {
        self.linears
            .get(id.0 as usize)
            .ok_or_else(|| Error::Argument(format!("linear {id} is not of this model")))
    }

    fn show(&mut self, site: SiteId, rows: &Tensor) -> Result<()> {
        if self.tap.wants(site) { self.tap.observe(site, rows) } else { Ok(()) }
    }

    /// Lets go of a site's activation. A tap may still hold one that it has seen, so only the others' buffers are used again.
    fn give(&self, site: SiteId, rows: Tensor) -> Result<()> {
        if self.tap.wants(site) { Ok(()) } else { self.ops.give(rows) }
    }

    fn modulation(&self, layer: &Linear) -> Result<Modulation> {
        let values = self.ops.linear(self.conditioning, layer)?;
        Ok(Modulation { values, width: self.conditioning.dim(1)? })
    }
}

impl JointBlock {
    /// Reads block `index`; its sites and linears are found in `inventory` by name.
    pub(super) fn load(
        config: &Sd3Config,
        inventory: &Inventory,
        index: usize,
        loader: &Loader<'_>,
    ) -> Result<Self> {
        let parts = Parts { config, inventory, index, loader };
        let (dual, last, width) = (config.is_dual(index), config.is_last(index), config.width());
        let image = StreamBlock {
            modulation: parts.linear("norm1.linear", if dual { 9 * width } else { 6 * width })?,
            attention: parts.attention("attn", ["to_q", "norm_q", "norm_k", "to_out.0"])?,
            own_attention: match dual {
                true => Some(parts.attention("attn2", ["to_q", "norm_q", "norm_k", "to_out.0"])?),
                false => None,
            },
            feed_forward: parts.feed_forward("ff")?,
        };
        let text = StreamBlock {
            modulation: parts.linear("norm1_context.linear", if last { 2 * width } else { 6 * width })?,
            attention: parts
                .attention("attn", ["add_q_proj", "norm_added_q", "norm_added_k", "to_add_out"])?,
            own_attention: None,
            feed_forward: parts.feed_forward("ff_context")?,
        };
        Ok(Self { image, text, heads: config.num_attention_heads })
    }

    /// The streams after this block; no text where its stream ends here. Both are `(batch * tokens) x width`.
    pub(super) fn forward(
        &self,
        mut image: Tensor,
        text: Tensor,
        pass: &mut Pass<'_>,
    ) -> Result<(Tensor, Option<Tensor>)> {
        let by_image = pass.modulation(&self.image.modulation)?;
        let by_text = pass.modulation(&self.text.modulation)?;
        let batch = pass.conditioning.dim(0)?;

        let of_image = self.image.attention.project(&image, &by_image, (part::SHIFT, part::SCALE), pass)?;
        let (shift, scale) = match self.text.feed_forward {
            Some(_) => (part::SHIFT, part::SCALE),
            None => (part::LAST_SHIFT, part::LAST_SCALE),
        };
        let of_text = self.text.attention.project(&text, &by_text, (shift, scale), pass)?;
        let own = match &self.image.own_attention {
            Some(own) => {
                Some((own, own.project(&image, &by_image, (part::OWN_SHIFT, part::OWN_SCALE), pass)?))
            }
            None => None,
        };

        let mut attended =
            pass.ops.attention(&[of_image.view(), of_text.view()], batch, self.heads)?.into_iter();
        of_image.give(pass)?;
        of_text.give(pass)?;
        image = self.image.attention.add_output(image, attended.next(), &by_image, part::GATE, pass)?;
        let text_attended = attended.next();
        if let Some((own, projections)) = own {
            let attended = pass.ops.attention(&[projections.view()], batch, self.heads)?.into_iter().next();
            projections.give(pass)?;
            image = own.add_output(image, attended, &by_image, part::OWN_GATE, pass)?;
        }
        image = self.image.add_feed_forward(image, &by_image, pass)?;
        if self.text.feed_forward.is_none() {
            return Ok((image, None));
        }
        let text = self.text.attention.add_output(text, text_attended, &by_text, part::GATE, pass)?;
        let text = self.text.add_feed_forward(text, &by_text, pass)?;
        Ok((image, Some(text)))
    }
}

impl Attention {
    fn project(
        &self,
        x: &Tensor,
        by: &Modulation,
        (shift, scale): (usize, usize),
        pass: &mut Pass<'_>,
    ) -> Result<Projections> {
        let normed = pass.ops.norm_modulate(x, by, shift, scale)?;
        pass.show(self.inputs, &normed)?;
        let [q, k, v] = self.projections;
        let norm = |i: usize| self.norms.as_ref().map(|norms| &norms[i]);
        let queries = match self.output {
            Some(_) => Some(pass.ops.linear_head_norm(&normed, pass.linear(q)?, norm(0))?),
            None => None,
        };
        let keys = pass.ops.linear_head_norm(&normed, pass.linear(k)?, norm(1))?;
        let values = pass.ops.linear(&normed, pass.linear(v)?)?;
        pass.give(self.inputs, normed)?;
        Ok(Projections { queries, keys, values })
    }

    fn add_output(
        &self,
        residual: Tensor,
        attended: Option<Tensor>,
        by: &Modulation,
        gate: usize,
        pass: &mut Pass<'_>,
    ) -> Result<Tensor> {
        let (Some(output), Some(attended)) = (self.output, attended) else { return Ok(residual) };
        pass.show(output.site, &attended)?;
        let sum = pass.ops.add_gated_linear(residual, &attended, pass.linear(output.linear)?, by, gate)?;
        pass.give(output.site, attended)?;
        Ok(sum)
    }
}

impl StreamBlock {
    fn add_feed_forward(&self, x: Tensor, by: &Modulation, pass: &mut Pass<'_>) -> Result<Tensor> {
        let Some([up, down]) = self.feed_forward else { return Ok(x) };
        let normed = pass.ops.norm_modulate(&x, by, part::FFN_SHIFT, part::FFN_SCALE)?;
        pass.show(up.site, &normed)?;
        let hidden = pass.ops.linear_gelu(&normed, pass.linear(up.linear)?)?;
        pass.give(up.site, normed)?;
        pass.show(down.site, &hidden)?;
        let sum = pass.ops.add_gated_linear(x, &hidden, pass.linear(down.linear)?, by, part::FFN_GATE)?;
        pass.give(down.site, hidden)?;
        Ok(sum)
    }
}

/// Finds a block's parts by their names.
struct Parts<'a> {
    config: &'a Sd3Config,
    inventory: &'a Inventory,
    index: usize,
    loader: &'a Loader<'a>,
}

impl Parts<'_> {
    fn name(&self, name: &str) -> String {
        format!("transformer_blocks.{}.{name}", self.index)
    }

    /// A linear that is never pruned and reads the conditioning vector.
    fn linear(&self, name: &str, rows: usize) -> Result<Linear> {
        self.loader.linear(&self.name(name), rows, self.config.width())
    }

    /// The site of this name with its linears, if the block has it.
    fn site(&self, kind: UnitKind, name: &str) -> Option<(SiteId, &[LinearId])> {
        let name = self.name(name);
        let mut units =
            self.inventory.units.iter().filter(|unit| unit.block as usize == self.index && unit.kind == kind);
        let id =
            units.find_map(|unit| unit.sites.iter().find(|id| self.inventory.site(**id).name == name))?;
        Some((*id, &self.inventory.site(*id).linears))
    }

    fn projection(&self, kind: UnitKind, name: &str) -> Option<Projection> {
        let (site, linears) = self.site(kind, name)?;
        Some(Projection { site, linear: *linears.first()? })
    }

    fn attention(&self, module: &str, [first, norm_q, norm_k, output]: [&str; 4]) -> Result<Attention> {
        let first = format!("{module}.{first}");
        let Some((inputs, &[q, k, v])) = self.site(UnitKind::AttentionInputs, &first) else {
            return Err(Error::Argument(format!("block {} has no {first}", self.index)));
        };
        let norm = |name: &str| {
            let name = self.name(&format!("{module}.{name}.weight"));
            self.loader.tensor(&name, &[self.config.attention_head_dim])
        };
        let norms = match self.config.norms_queries() {
            true => Some([norm(norm_q)?, norm(norm_k)?]),
            false => None,
        };
        let output = self.projection(UnitKind::AttentionOutputs, &format!("{module}.{output}"));
        Ok(Attention { inputs, projections: [q, k, v], norms, output })
    }

    fn feed_forward(&self, module: &str) -> Result<Option<[Projection; 2]>> {
        let up = self.projection(UnitKind::FfnInputs, &format!("{module}.net.0.proj"));
        let down = self.projection(UnitKind::FfnHidden, &format!("{module}.net.2"));
        Ok(up.zip(down).map(|(up, down)| [up, down]))
    }
}
