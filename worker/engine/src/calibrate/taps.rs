//! The taps of calibration: one sums Grams, one measures energies for the exponents.

use std::collections::BTreeMap;
use std::time::Duration;

use obsdiff_proto::{Accumulate, Inventory, SiteId};

use super::observed::{with_constant, with_rows};
use crate::gram::{GramError, GramSet};
use crate::model::{Matrix, Tap};
use crate::{Error, Result};

/// A tap whose observations count by the weight of their denoising step.
pub trait WeightedTap: Tap {
    /// The weight alpha of the observations that follow.
    fn set_alpha(&mut self, alpha: f64);

    /// Waits until everything observed so far is taken.
    ///
    /// # Errors
    /// When some of it could not be, which a device finds out later than it is observed.
    fn settle(&mut self) -> Result<()> {
        Ok(())
    }
}

/// Adds every observation of an open site to its Gram. One that is a feature wider than its site is given a constant 1 there.
pub struct GramTap<'a> {
    inventory: &'a Inventory,
    grams: &'a mut dyn GramSet,
    of_group: Option<&'a mut dyn GramSet>,
    alpha: f64,
    operations: u64,
}

impl<'a> GramTap<'a> {
    /// A tap whose open sites are those of `grams`.
    pub fn new(inventory: &'a Inventory, grams: &'a mut dyn GramSet) -> Self {
        Self { inventory, grams, of_group: None, alpha: 1.0, operations: 0 }
    }

    /// Adds every observation to other Grams of the same sites, too: those of some of the prompts.
    pub fn with_group(self, of_group: Option<&'a mut dyn GramSet>) -> Self {
        Self { of_group, ..self }
    }

    /// Floating-point operations of all Grams so far: n (n + 1) for each row that a Gram of width n was given, since only its upper
    /// triangle is formed.
    pub fn operations(&self) -> u64 {
        self.operations
    }
}

/// An error that says of which site an observation cannot be added.
fn refused(inventory: &Inventory, site: SiteId, error: &GramError) -> Error {
    let name = inventory.site(site).name.clone();
    match error {
        GramError::Overflow { .. } => Error::Overflow { site, name },
        _ => Error::Site { name, problem: error.to_string() },
    }
}

/// The same error, unless it asks for a lower exponent of f32 sums, which have none.
pub(crate) fn of_sums(error: Error, accumulate: Accumulate) -> Error {
    match (error, accumulate) {
        (Error::Overflow { name, .. }, Accumulate::F32) => {
            let problem = "its Gram leaves the range of f32: lower hessian.low and hessian.high, or set \
                           hessian.accumulate = \"exact\"";
            Error::Site { name, problem: problem.to_owned() }
        }
        (error, _) => error,
    }
}

impl WeightedTap for GramTap<'_> {
    fn set_alpha(&mut self, alpha: f64) {
        self.alpha = alpha;
    }

    fn settle(&mut self) -> Result<()> {
        let _span = tracing::info_span!("gram").entered();
        let mut worked = Duration::ZERO;
        for grams in [Some(&mut *self.grams), self.of_group.as_deref_mut()].into_iter().flatten() {
            worked += grams.settle().map_err(|(site, error)| refused(self.inventory, site, &error))?;
        }
        if !worked.is_zero() {
            // A device adds to Grams during the forward call, whose span has waited for that, too. Accounts of time move it by this event.
            let nanoseconds = worked.as_nanos() as u64;
            tracing::trace!(moved_from = "forward", moved_to = "gram", nanoseconds, "a device's work");
        }
        Ok(())
    }
}

impl Tap for GramTap<'_> {
    fn wants(&self, site: SiteId) -> bool {
        self.grams.width(site).is_some()
    }

    fn observe(&mut self, site: SiteId, rows: &Matrix) -> Result<()> {
        let Some(gram_width) = self.grams.width(site) else { return Ok(()) };
        let _span = tracing::info_span!("gram").entered();
        let alpha = self.alpha;
        let width = self.inventory.site(site).width;
        let entries = gram_width as u64 * (gram_width as u64 + 1);
        self.operations += rows.rows()? as u64 * entries;
        let failed = |error| refused(self.inventory, site, &error);
        let sets = [Some(&mut *self.grams), self.of_group.as_deref_mut()];
        for grams in sets.into_iter().flatten() {
            if grams.observe_in_place(site, rows, alpha).map_err(failed)? {
                continue;
            }
            with_rows(&rows.to_host()?, |rows| {
                let widened = (gram_width > width).then(|| with_constant(rows, width));
                grams.observe(site, widened.as_deref().unwrap_or(rows), alpha)
            })?
            .map_err(failed)?;
        }
        Ok(())
    }
}

/// Sums the weighted column energies of every site it wants: the diagonals their Grams would have.
pub struct EnergyTap<'a> {
    inventory: &'a Inventory,
    energies: BTreeMap<SiteId, Energy>,
    /// On whose device energies are measured.
    device: Box<dyn GramSet>,
    alpha: f64,
}

/// The column energies of a site.
#[derive(Clone, Debug, Default)]
pub struct Energy {
    /// Sum over observations of alpha x_j^2, for each column j.
    pub total: Vec<f64>,
    /// The largest that one observation brought to a column.
    pub largest: f64,
}

impl<'a> EnergyTap<'a> {
    /// A tap that wants `sites`, and measures on the device of a set of Grams.
    pub fn new(
        inventory: &'a Inventory,
        sites: impl IntoIterator<Item = SiteId>,
        device: Box<dyn GramSet>,
    ) -> Self {
        let energy = |site| (site, Energy { total: vec![0.0; inventory.site(site).width], largest: 0.0 });
        Self { inventory, energies: sites.into_iter().map(energy).collect(), device, alpha: 1.0 }
    }

    /// With a feature of constant 1 behind those of each site.
    pub fn with_constant(mut self) -> Self {
        self.energies.values_mut().for_each(|energy| energy.total.push(0.0));
        self
    }

    /// What was measured, by site.
    pub fn into_energies(self) -> BTreeMap<SiteId, Energy> {
        self.energies
    }
}

impl WeightedTap for EnergyTap<'_> {
    fn set_alpha(&mut self, alpha: f64) {
        self.alpha = alpha;
    }
}

impl Tap for EnergyTap<'_> {
    fn wants(&self, site: SiteId) -> bool {
        self.energies.contains_key(&site)
    }

    fn observe(&mut self, site: SiteId, rows: &Matrix) -> Result<()> {
        let Some(energy) = self.energies.get_mut(&site) else { return Ok(()) };
        let _span = tracing::info_span!("gram").entered();
        let mut brought = vec![0.0; energy.total.len()];
        let features = self.inventory.site(site).width;
        let name = || self.inventory.site(site).name.clone();
        brought[features..].fill(self.alpha * rows.rows()? as f64);
        let failed = |error: GramError| Error::Site { name: name(), problem: error.to_string() };
        let own = &mut brought[..features];
        if !self.device.column_energy_in_place(rows, self.alpha, own).map_err(failed)? {
            let energy = |rows: &[f32]| self.device.column_energy(rows, features, self.alpha, own);
            with_rows(&rows.to_host()?, energy)?.map_err(failed)?;
        }
        for (total, brought) in energy.total.iter_mut().zip(brought) {
            if !brought.is_finite() {
                let problem = "an activation is not finite: the model overflows or its weights are damaged";
                return Err(Error::Site { name: name(), problem: problem.to_owned() });
            }
            *total += brought;
            energy.largest = energy.largest.max(brought);
        }
        Ok(())
    }
}
