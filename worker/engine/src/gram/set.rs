//! The Grams of several sites, summed on the host or on a device.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use obsdiff_proto::SiteId;

use super::{Gram, GramError, PlacedGram, column_energy};
use crate::model::Matrix;

/// The open Grams of a package, on the device that sums them.
pub trait GramSet: Send {
    /// Opens a site's Gram with the sums that it has so far.
    ///
    /// # Errors
    /// [`GramError::Device`] where the device has no room for it.
    fn open(&mut self, site: SiteId, gram: &Arc<Gram>) -> Result<(), GramError>;

    /// [`Self::open`] with a Gram to which nothing has been added yet.
    ///
    /// # Errors
    /// As [`Self::open`].
    fn open_empty(&mut self, site: SiteId, gram: &Arc<Gram>) -> Result<(), GramError> {
        self.open(site, gram)
    }

    /// Waits until all that was observed is added, and says of which site some could not be: nothing was added to that site from there on.
    /// A device finds out later than [`Self::observe`] returns. A set of which this or another function has said so is of no use any more.
    ///
    /// Gives the time that a device has worked on observations since it was last asked, while nobody waited for it.
    ///
    /// # Errors
    /// As [`Gram::observe`], and [`GramError::Device`].
    fn settle(&mut self) -> Result<Duration, (SiteId, GramError)> {
        Ok(Duration::ZERO)
    }

    /// A site's Gram as it is now, where its sums lie, once all work on it is done; none where it is not open. While it is held, what is
    /// observed is added to a copy.
    ///
    /// # Errors
    /// [`GramError::Device`]; as [`Self::settle`].
    fn share(&self, site: SiteId) -> Result<Option<PlacedGram>, GramError>;

    /// Copies the sums and the mass of a site's Gram to one of the same shape. It stays open.
    ///
    /// # Errors
    /// [`GramError::Mismatch`] for a Gram of another width, exponent or kind, or of a site that is not open; [`GramError::Device`]; as
    /// [`Self::settle`].
    fn read(&self, site: SiteId, gram: &mut Gram) -> Result<(), GramError>;

    /// Features of a site's Gram; none where it is not open.
    fn width(&self, site: SiteId) -> Option<usize>;

    /// Adds alpha X^T X to a site's Gram for an observation `rows` = X (tokens x n, row-major), as [`Gram::observe`] does. Nothing happens
    /// where it is not open.
    ///
    /// # Errors
    /// As [`Gram::observe`], and [`GramError::Device`]; a device may say so later, see [`Self::settle`].
    fn observe(&mut self, site: SiteId, rows: &[f32], alpha: f64) -> Result<(), GramError>;

    /// [`Self::observe`] for rows in the memory of the device that sums the Gram, in their own type; false where they are elsewhere, and
    /// nothing is done. Where the Gram is wider than the rows, they get features of constant 1 behind the others.
    ///
    /// # Errors
    /// As [`Self::observe`].
    fn observe_in_place(&mut self, _site: SiteId, _rows: &Matrix, _alpha: f64) -> Result<bool, GramError> {
        Ok(false)
    }

    /// S_jj for every column j of a site's Gram, not divided by the mass; none where it is not open.
    ///
    /// # Errors
    /// [`GramError::Device`]; as [`Self::settle`].
    fn diagonal(&self, site: SiteId) -> Result<Option<Vec<f64>>, GramError>;

    /// Adds alpha times the sum of squares of each column of `rows` (tokens x `width`, row-major) to `energy` (`width`), as
    /// [`column_energy`] does.
    ///
    /// # Errors
    /// [`GramError::Device`].
    fn column_energy(
        &mut self,
        rows: &[f32],
        width: usize,
        alpha: f64,
        energy: &mut [f64],
    ) -> Result<(), GramError>;

    /// [`Self::column_energy`] of rows in the device's memory, in their own type; false where they are elsewhere, and nothing is done.
    ///
    /// # Errors
    /// [`GramError::Device`].
    fn column_energy_in_place(
        &mut self,
        _rows: &Matrix,
        _alpha: f64,
        _energy: &mut [f64],
    ) -> Result<bool, GramError> {
        Ok(false)
    }
}

/// On the processor. While a Gram is shared, observations are added to a copy.
impl GramSet for BTreeMap<SiteId, Arc<Gram>> {
    fn open(&mut self, site: SiteId, gram: &Arc<Gram>) -> Result<(), GramError> {
        self.insert(site, Arc::clone(gram));
        Ok(())
    }

    fn share(&self, site: SiteId) -> Result<Option<PlacedGram>, GramError> {
        Ok(self.get(&site).map(|gram| PlacedGram::Host(Arc::clone(gram))))
    }

    fn read(&self, site: SiteId, gram: &mut Gram) -> Result<(), GramError> {
        let of = self.get(&site).ok_or(GramError::Mismatch)?;
        if (of.width(), of.exponent(), of.accumulates())
            != (gram.width(), gram.exponent(), gram.accumulates())
        {
            return Err(GramError::Mismatch);
        }
        gram.clone_from(of);
        Ok(())
    }

    fn width(&self, site: SiteId) -> Option<usize> {
        self.get(&site).map(|gram| gram.width())
    }

    fn observe(&mut self, site: SiteId, rows: &[f32], alpha: f64) -> Result<(), GramError> {
        self.get_mut(&site).map_or(Ok(()), |gram| Arc::make_mut(gram).observe(rows, alpha))
    }

    fn diagonal(&self, site: SiteId) -> Result<Option<Vec<f64>>, GramError> {
        Ok(self.get(&site).map(|gram| gram.diagonal()))
    }

    fn column_energy(
        &mut self,
        rows: &[f32],
        width: usize,
        alpha: f64,
        energy: &mut [f64],
    ) -> Result<(), GramError> {
        column_energy(rows, width, alpha, energy);
        Ok(())
    }
}
