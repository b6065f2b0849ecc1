//! Sizes in bytes, written with a binary or decimal unit.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// A number of bytes; reads `"16GiB"`, `"500 MB"` or `"4096"`. Written here, because the crates for it (`bytesize` 2.7, `parse-size` 1.1)
/// read "0.4B" as 0, and the first one also "99999999999999999999TB" as the largest size: here both are refused, with examples.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ByteSize(pub u64);

/// A size that is not a number with a known unit.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("\"{0}\" is not a size in bytes such as \"16GiB\", \"500MB\" or \"4096\"")]
pub struct ByteSizeError(String);

const UNITS: [(&str, f64); 9] = [
    ("KiB", 1024.0),
    ("MiB", 1024.0 * 1024.0),
    ("GiB", 1024.0 * 1024.0 * 1024.0),
    ("TiB", 1024.0 * 1024.0 * 1024.0 * 1024.0),
    ("KB", 1e3),
    ("MB", 1e6),
    ("GB", 1e9),
    ("TB", 1e12),
    ("B", 1.0),
];

impl FromStr for ByteSize {
    type Err = ByteSizeError;

    fn from_str(s: &str) -> Result<Self, ByteSizeError> {
        let s = s.trim();
        let (number, unit) = UNITS
            .iter()
            .find_map(|(name, unit)| s.strip_suffix(name).map(|number| (number, *unit)))
            .unwrap_or((s, 1.0));
        match number.trim().parse::<f64>() {
            Ok(n) if n.is_finite() && n * unit >= 1.0 && n * unit < u64::MAX as f64 => {
                Ok(Self((n * unit) as u64))
            }
            _ => Err(ByteSizeError(s.to_owned())),
        }
    }
}

impl TryFrom<String> for ByteSize {
    type Error = ByteSizeError;

    fn try_from(s: String) -> Result<Self, ByteSizeError> {
        s.parse()
    }
}

impl From<ByteSize> for String {
    fn from(size: ByteSize) -> Self {
        format!("{}B", size.0)
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let binary = UNITS[..4].iter().rev().find(|(_, unit)| self.0 as f64 >= *unit);
        match binary {
            Some((name, unit)) => write!(f, "{:.1} {name}", self.0 as f64 / unit),
            None => write!(f, "{} B", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_units() {
        for (text, bytes) in
            [("16GiB", 16 << 30), ("1.5 KiB", 1536), ("500MB", 500_000_000), ("4096", 4096), ("7B", 7)]
        {
            assert_eq!(text.parse(), Ok(ByteSize(bytes)), "{text}");
        }
        for text in
            ["", "GiB", "-1GiB", "nanB", "12 parsecs", "1e40TB", "0", "0.4B", "99999999999999999999TB"]
        {
            assert!(text.parse::<ByteSize>().is_err(), "{text}");
        }
    }

    #[test]
    fn shows_binary_units() {
        assert_eq!(ByteSize(3 << 29).to_string(), "1.5 GiB");
        assert_eq!(ByteSize(900).to_string(), "900 B");
    }
}
