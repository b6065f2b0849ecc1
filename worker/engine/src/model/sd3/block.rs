//! One joint block: image and text tokens attend to each other, then each stream passes its own feed-forward network.

use candle_core::Tensor;
use obsdiff_proto::{Inventory, LinearId, SiteId, UnitKind};

use super::super::Tap;
use super::super::ops::Linear;
use super::Sd3Config;
use super::loading::Loader;
use super::stream::{Activation, Attention, Entered, Projection, Shared, StreamBlock};
use crate::{Error, Result};

/// A block's part of the model. Linears that can be pruned live in the model's list; here are their ids.
#[derive(Clone, Debug)]
pub(super) struct JointBlock {
    image: StreamBlock,
    text: StreamBlock,
    heads: usize,
    own_heads: usize,
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
        Ok(Self { image, text, heads: config.heads(index), own_heads: config.own_heads(index) })
    }

    /// The streams after this block; no text where its stream ends here. Both are `(batch * tokens) x width`.
    pub(super) fn forward(
        &self,
        image: Tensor,
        text: Tensor,
        shared: Shared<'_>,
        tap: &mut dyn Tap,
    ) -> Result<(Tensor, Option<Tensor>)> {
        let ops = shared.ops;
        let (mut of_image, mut of_text) =
            ops.both(|| self.image.enter(&image, shared), || self.text.enter(&text, shared))?;
        show([Some(&mut of_image.inputs), Some(&mut of_text.inputs), of_image.own_inputs.as_mut()], tap)?;

        let (by_image, by_text) = (of_image.by.clone(), of_text.by.clone());
        let attend = || self.attend(of_image, of_text, shared);
        let [mut joint, mut of_text, mut own] = ops.section(attend)?;
        show([joint.as_mut(), of_text.as_mut(), own.as_mut()], tap)?;

        let ((image, mut image_inputs), (text, mut text_inputs)) = ops.both(
            || self.image.leave_attention(image, [joint, own], &by_image, shared),
            || self.text.leave_attention(text, [of_text, None], &by_text, shared),
        )?;
        show([image_inputs.as_mut(), text_inputs.as_mut(), None], tap)?;

        let (mut image_hidden, mut text_hidden) =
            ops.both(|| self.image.up(image_inputs, shared), || self.text.up(text_inputs, shared))?;
        show([image_hidden.as_mut(), text_hidden.as_mut(), None], tap)?;

        let (image, text) = ops.both(
            || self.image.down(image, image_hidden, &by_image, shared),
            || self.text.down(text, text_hidden, &by_text, shared),
        )?;
        Ok((image, self.text.feed_forward.is_some().then_some(text)))
    }

    /// What the image tokens, the text tokens, and the image tokens on their own attend to, as far as it is read.
    fn attend(&self, image: Entered, text: Entered, shared: Shared<'_>) -> Result<[Option<Activation>; 3]> {
        let ops = shared.ops;
        let batch = shared.conditioning.dim(0)?;
        let own = || match self.image.own_attention.as_ref().zip(image.own_inputs) {
            Some((attention, inputs)) => Ok(Some((attention, attention.project(inputs, shared)?))),
            None => Ok(None),
        };
        let of_image = || self.image.attention.project(image.inputs, shared);
        let of_text = || self.text.attention.project(text.inputs, shared);
        let (of_image, (of_text, own)) = ops.both(of_image, || ops.both(of_text, own))?;

        let mut attended = ops.attention(&[of_image.view(), of_text.view()], batch, self.heads)?.into_iter();
        of_image.give(ops)?;
        of_text.give(ops)?;
        let joint = self.image.attention.attended(attended.next());
        let of_text = self.text.attention.attended(attended.next());
        let own = match own {
            Some((attention, projections)) => {
                let attended = ops.attention(&[projections.view()], batch, self.own_heads)?;
                projections.give(ops)?;
                attention.attended(attended.into_iter().next())
            }
            None => None,
        };
        Ok([joint, of_text, own])
    }
}

fn show(unit: [Option<&mut Activation>; 3], tap: &mut dyn Tap) -> Result<()> {
    unit.into_iter().flatten().try_for_each(|activation| activation.show(tap))
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
