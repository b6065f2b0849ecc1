//! One joint block: image and text tokens attend to each other, then each stream passes its own feed-forward network.

use super::stream::{Activation, BlockContext, BlockInput, StreamBlock};
use super::{Matrix, Tap};
use crate::Result;

/// A block's part of the model. Linears that can be pruned live in the model's list; here are their ids.
#[derive(Clone, Debug)]
pub(crate) struct JointBlock {
    pub(crate) image: StreamBlock,
    pub(crate) text: StreamBlock,
    pub(crate) heads: usize,
    /// Heads of the image stream's attention on itself; 0 without one.
    pub(crate) own_heads: usize,
}

impl JointBlock {
    /// The streams after this block; no text where its stream ends here. Both are `(batch * tokens) x width`.
    pub(crate) fn forward(
        &self,
        image: Matrix,
        text: Matrix,
        shared: BlockContext<'_>,
        tap: &mut dyn Tap,
    ) -> Result<(Matrix, Option<Matrix>)> {
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
    fn attend(
        &self,
        image: BlockInput,
        text: BlockInput,
        shared: BlockContext<'_>,
    ) -> Result<[Option<Activation>; 3]> {
        let ops = shared.ops;
        let batch = shared.conditioning.rows()?;
        let own = || match self.image.own_attention.as_ref().zip(image.own_inputs) {
            Some((attention, inputs)) => Ok(Some((attention, attention.project(inputs, shared)?))),
            None => Ok(None),
        };
        let of_image = || self.image.attention.project(image.inputs, shared)?.rotated(shared);
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
