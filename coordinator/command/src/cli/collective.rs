//! How workers sum their Grams.

use std::str::FromStr;

/// The value of `--collective`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CollectiveChoice {
    /// Gloo, between CPUs.
    Gloo,
    /// NCCL, between GPUs.
    Nccl {
        /// The number of this host's GPU, as CUDA counts them; that of `--device` where it is not named.
        gpu: Option<usize>,
    },
}

impl FromStr for CollectiveChoice {
    type Err = String;

    fn from_str(words: &str) -> Result<Self, String> {
        let gpu = match words.split_once(':') {
            None if words == "gloo" => return Ok(Self::Gloo),
            None if words == "nccl" => return Ok(Self::Nccl { gpu: None }),
            Some(("nccl", number)) => number.parse().ok(),
            _ => None,
        };
        let gpu = gpu.ok_or_else(|| "gloo, nccl or nccl:N is expected, such as nccl:0".to_owned())?;
        Ok(Self::Nccl { gpu: Some(gpu) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_collective_is_named_with_its_gpu() {
        let parsed = ["gloo", "nccl", "nccl:3"].map(|words| words.parse::<CollectiveChoice>().unwrap());
        assert_eq!(
            parsed,
            [
                CollectiveChoice::Gloo,
                CollectiveChoice::Nccl { gpu: None },
                CollectiveChoice::Nccl { gpu: Some(3) }
            ]
        );
        for words in ["", "mpi", "gloo:1", "nccl:", "nccl:-1", "NCCL"] {
            assert!(words.parse::<CollectiveChoice>().unwrap_err().contains("nccl:N"), "{words}");
        }
    }
}
