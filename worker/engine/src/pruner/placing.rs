//! Grams that a device sums beside the host's.

use std::collections::BTreeMap;
use std::sync::Arc;

use obsdiff_proto::{Inventory, SiteId};

use crate::gram::{Gram, GramError, GramSet};
use crate::{Error, Result};

/// A device's set of Grams in which all of the host's are open, those that were not before with the host's sums, all of them zeros where the
/// host's are `empty`.
pub(super) fn opened(
    mut set: Box<dyn GramSet>,
    grams: &BTreeMap<SiteId, Arc<Gram>>,
    empty: bool,
    inventory: &Inventory,
) -> Result<Box<dyn GramSet>> {
    for (site, gram) in grams {
        if set.width(*site).is_none() {
            let opened = if empty { set.open_empty(*site, gram) } else { set.open(*site, gram) };
            opened.map_err(|error| of_site(*site, inventory, &error))?;
        }
    }
    Ok(set)
}

/// Copies a device's sums to the host's Grams.
pub(super) fn read_back(
    set: &dyn GramSet,
    grams: &mut BTreeMap<SiteId, Arc<Gram>>,
    inventory: &Inventory,
) -> Result<()> {
    grams.iter_mut().try_for_each(|(site, gram)| {
        set.read(*site, Arc::make_mut(gram)).map_err(|error| of_site(*site, inventory, &error))
    })
}

pub(super) fn of_site(site: SiteId, inventory: &Inventory, error: &GramError) -> Error {
    Error::Site { name: inventory.site(site).name.clone(), problem: error.to_string() }
}
