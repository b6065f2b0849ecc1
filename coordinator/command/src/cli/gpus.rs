//! The GPUs of a host.

use std::collections::BTreeSet;
use std::str::FromStr;

/// The value of `--devices`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GpuChoice {
    /// All that the driver shows.
    All,
    /// Those of these numbers, as CUDA counts them.
    Numbers(BTreeSet<usize>),
}

impl FromStr for GpuChoice {
    type Err = String;

    fn from_str(words: &str) -> Result<Self, String> {
        if words == "all" {
            return Ok(Self::All);
        }
        let expected = || "all or different numbers are expected, such as 0,1,3".to_owned();
        let mut numbers = BTreeSet::new();
        for word in words.split(',') {
            let number = word.parse().map_err(|_| expected())?;
            if !numbers.insert(number) {
                return Err(expected());
            }
        }
        Ok(Self::Numbers(numbers))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gpus_are_all_or_numbered() {
        assert_eq!("all".parse(), Ok(GpuChoice::All));
        assert_eq!("3,0".parse(), Ok(GpuChoice::Numbers([0, 3].into())));
        for words in ["", "1,", "1,1", "-1", "ALL", "0-3"] {
            assert!(words.parse::<GpuChoice>().unwrap_err().contains("0,1,3"), "{words}");
        }
    }
}
