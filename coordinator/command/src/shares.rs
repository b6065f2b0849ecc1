//! The shares of a device's product rates that each kind of work reaches, by which times are predicted.

use std::borrow::Cow;
use std::fmt;

use obsdiff_engine::device::ComputeDevice;
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// The shares on GPUs. `tests/gpu` gives those of a GPU in this form, to be copied here.
const ON_GPUS: &str = include_str!("gpu_shares.json");

/// A share of a rate, and where it is from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Share {
    pub(crate) share: f64,
    from: Cow<'static, str>,
}

impl Share {
    const fn of(share: f64, from: &'static str) -> Self {
        Self { share, from: Cow::Borrowed(from) }
    }
}

/// The shares of a device's product rates that each kind of work reaches.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ProductShares {
    /// What they were measured on; absent where they are assumed.
    pub(crate) measured_on: Option<Cow<'static, str>>,
    /// Whether they count the time in which Grams and solving read and write memory; otherwise that comes to it.
    pub(crate) includes_memory: bool,
    /// Of forward calls.
    pub(crate) forward: Share,
    /// Of Grams.
    pub(crate) gram: Share,
    /// Of factorising and of sweeping over columns.
    pub(crate) sweep: Share,
    /// Of the products of refinement, and of masks by alternating directions.
    pub(crate) products: Share,
}

/// The shares on a processor; those of products are the ones of wide sites.
const ON_PROCESSORS: ProductShares = ProductShares {
    measured_on: Some(Cow::Borrowed("processors")),
    includes_memory: false,
    forward: Share::of(0.7, "cargo bench -p obsdiff --bench forward"),
    gram: Share::of(0.7, "cargo bench -p obsdiff-engine --bench gram"),
    sweep: Share::of(0.6, "cargo bench -p obsdiff-engine --bench solve"),
    products: Share::of(0.95, "cargo bench -p obsdiff-engine --bench solve"),
};

impl ProductShares {
    /// Those on a device.
    ///
    /// # Errors
    /// When this build has a table for GPUs that is none.
    pub(crate) fn of(device: &ComputeDevice) -> Result<Self> {
        if device.is_host() {
            return Ok(ON_PROCESSORS);
        }
        serde_json::from_str(ON_GPUS).map_err(|error| {
            Error::content(
                "gpu_shares.json",
                format!("is not a table of shares ({error}): build obsdiff again"),
            )
        })
    }

    /// Those on processors.
    pub(crate) const fn of_processors() -> Self {
        ON_PROCESSORS
    }
}

/// In words, each with its share.
impl fmt::Display for ProductShares {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = |share: &Share| 100.0 * share.share;
        write!(
            f,
            "forward calls reach {:.0}%, Grams {:.0}%,\nsweeps {:.0}%, products of solving {:.0}%: ",
            percent(&self.forward),
            percent(&self.gram),
            percent(&self.sweep),
            percent(&self.products)
        )?;
        match &self.measured_on {
            Some(device) => write!(f, "measured on {device}"),
            None => f.write_str("assumed, not measured"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_for_gpus_is_one_and_says_whether_it_is_measured() {
        let shares: ProductShares = serde_json::from_str(ON_GPUS).unwrap();
        for share in [&shares.forward, &shares.gram, &shares.sweep, &shares.products] {
            assert!(share.share > 0.0 && share.share <= 1.0 && !share.from.is_empty(), "{share:?}");
            assert_eq!(share.from.starts_with("target: "), shares.measured_on.is_none(), "{share:?}");
        }
        let said = shares.to_string();
        let words =
            "forward calls reach 60%, Grams 77%,\nsweeps 62%, products of solving 62%: assumed, not measured";
        assert_eq!(said == words, shares.measured_on.is_none(), "{said}");
        let measured = ProductShares { measured_on: Some("a GPU".into()), ..shares };
        assert!(measured.to_string().ends_with(": measured on a GPU"));
    }

    #[test]
    fn the_targets_are_those_that_the_times_of_a_gpu_are_held_to() {
        let shares: ProductShares = serde_json::from_str(ON_GPUS).unwrap();
        if shares.measured_on.is_none() {
            assert_eq!(shares.forward.share, 0.6);
            assert!((shares.gram.share - 0.5 / 0.65).abs() < 1e-3, "{}", shares.gram.share);
            assert_eq!([shares.sweep.share, shares.products.share], [1.0 / 1.6; 2]);
        }
    }
}
