//! The package that is open.

use std::collections::BTreeMap;

use obsdiff_proto::{Package, SiteId};

use crate::gram::Gram;

/// A package and the Grams of its sites that are not solved yet.
pub(super) struct OpenPackage {
    pub(super) package: Package,
    pub(super) grams: BTreeMap<SiteId, Gram>,
}
