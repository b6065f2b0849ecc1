//! Checking the inputs of a forward call.

use candle_core::Tensor;

use crate::model::Denoise;
use crate::{Error, Result};

/// What a transformer takes.
pub(in crate::architecture) struct CallShapes {
    /// Latent channels.
    pub(in crate::architecture) channels: usize,
    /// Features of a text token.
    pub(in crate::architecture) joint: usize,
    /// Features of the pooled text.
    pub(in crate::architecture) pooled: usize,
    /// Whether guidance is an input.
    pub(in crate::architecture) guided: bool,
}

impl CallShapes {
    /// Checks a call's shapes; gives the height and width of its latents.
    ///
    /// # Errors
    /// Naming the first input that does not fit.
    pub(in crate::architecture) fn check(&self, call: &Denoise<'_>) -> Result<(usize, usize)> {
        let &Self { channels, joint, pooled, guided } = self;
        let (batch, height, width) = match call.latents.dims() {
            &[batch, found, height, width] if batch > 0 && found == channels => (batch, height, width),
            _ => {
                let expected = format!("[batch, {channels}, height, width] with a batch of 1 or more");
                return refuse("latents", call.latents, &expected);
            }
        };
        if call.timestep.dims() != [batch] {
            return refuse("timesteps", call.timestep, &format!("[{batch}]"));
        }
        if !matches!(call.text.dims(), &[b, tokens, n] if b == batch && tokens > 0 && n == joint) {
            return refuse("text tokens", call.text, &format!("[{batch}, tokens, {joint}]"));
        }
        if call.pooled.dims() != [batch, pooled] {
            return refuse("pooled embeddings", call.pooled, &format!("[{batch}, {pooled}]"));
        }
        match (call.guidance, guided) {
            (Some(guidance), true) if guidance.dims() != [batch] => {
                refuse("guidances", guidance, &format!("[{batch}]"))
            }
            (None, true) => Err(Error::Argument("the transformer takes guidance as an input".to_owned())),
            (Some(_), false) => {
                Err(Error::Argument("the transformer takes no guidance as an input".to_owned()))
            }
            _ => Ok((height, width)),
        }
    }
}

fn refuse<T>(what: &str, tensor: &Tensor, expected: &str) -> Result<T> {
    let found = tensor.dims();
    Err(Error::Argument(format!("{what} have shape {found:?}, but the transformer takes {expected}")))
}
