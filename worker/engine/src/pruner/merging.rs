//! Adding Grams that were gathered elsewhere to those of the open package.

use std::sync::Arc;

use obsdiff_proto::SiteId;

use super::placing::{of_site, read_back};
use super::{Pruner, no_package};
use crate::gram::{Gram, GramError};
use crate::{Error, Result};

impl Pruner {
    /// Adds a Gram to that of a site of the open package, or to that over a group of prompts alone, counted from 0. What a device has
    /// summed comes to the host first, and goes back with the next calibration.
    ///
    /// # Errors
    /// When the Gram is another site's, or the sum leaves its range ([`Error::Overflow`]): it is then as it was. When the device fails.
    pub fn add_gram(&mut self, site: SiteId, group: Option<usize>, gram: &Gram) -> Result<()> {
        let inventory = self.model.inventory();
        let grams = self.open.as_mut().ok_or_else(no_package)?;
        if let Some(set) = &self.on_device {
            read_back(&**set, grams, inventory)?;
            (self.on_device, self.host_is_empty) = (None, false);
        }
        let grams = match group {
            Some(group) => self.of_groups.get_mut(group),
            None => Some(grams),
        };
        let into = grams.and_then(|grams| grams.get_mut(&site)).ok_or_else(|| {
            Error::Argument(format!("the open package has no Gram of site {site} over these prompts"))
        })?;
        if group.is_none() {
            self.host_is_empty = false;
        }
        Arc::make_mut(into).merge(gram).map_err(|error| match error {
            GramError::Overflow { .. } => Error::Overflow { site, name: inventory.site(site).name.clone() },
            error => of_site(site, inventory, &error),
        })
    }
}
