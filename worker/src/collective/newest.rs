//! The epochs that a transport has joined.

use std::sync::Mutex;

use obsdiff_proto::{Epoch, lock};

use super::{CollectiveError, Result};

/// The newest epoch that was taken.
#[derive(Debug, Default)]
pub(super) struct NewestEpoch(Mutex<Option<Epoch>>);

impl NewestEpoch {
    /// Takes an epoch, which must be newer than the last.
    ///
    /// # Errors
    /// [`CollectiveError::EpochUsed`].
    pub(super) fn take(&self, epoch: Epoch) -> Result<()> {
        let mut newest = lock(&self.0);
        match *newest {
            Some(newest) if newest >= epoch => Err(CollectiveError::EpochUsed(epoch)),
            _ => {
                *newest = Some(epoch);
                Ok(())
            }
        }
    }
}
