//! How workers sum their Grams.

use std::str::FromStr;

/// The value of `--collective`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CollectiveChoice {
    /// Gloo, between CPUs.
    Gloo,
    /// NCCL, between GPUs.
    Nccl {
        /// The number of this host's GPU, as CUDA counts them.
        gpu: usize,
    },
}

impl FromStr for CollectiveChoice {
    type Err = String;

    fn from_str(words: &str) -> Result<Self, String> {
        let gpu = match words.split_once(':') {
            None if words == "gloo" => return Ok(Self::Gloo),
            None if words == "nccl" => Some(0),
            Some(("nccl", number)) => number.parse().ok(),
            _ => None,
        };
        gpu.map(|gpu| Self::Nccl { gpu })
            .ok_or_else(|| "gloo, nccl or nccl:N is expected, such as nccl:0".to_owned())
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
            [CollectiveChoice::Gloo, CollectiveChoice::Nccl { gpu: 0 }, CollectiveChoice::Nccl { gpu: 3 }]
        );
        for words in ["", "mpi", "gloo:1", "nccl:", "nccl:-1", "NCCL"] {
            assert!(words.parse::<CollectiveChoice>().unwrap_err().contains("nccl:N"), "{words}");
        }
    }
}
