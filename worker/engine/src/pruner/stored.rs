//! Solved numbers as an export writes them.

use candle_core::{DType, Tensor};

use super::{Pruner, SolvedSlice};
use crate::solve::{OutputEnergy, SolveError};
use crate::{Error, Result};

/// Rows that are rounded at once.
const ROWS_AT_ONCE: usize = 512;

/// Which numbers the report of a solved slice describes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reported {
    /// Those in f32, as they are solved: a survey compares these.
    Solved,
    /// Those that an export writes.
    Stored,
}

impl Pruner {
    /// A pruned tensor's numbers after they were rounded to the type in which the checkpoint has it; none where that is f32 or f64, which
    /// hold them as they are.
    ///
    /// # Errors
    /// When the checkpoint lacks the tensor, or a number leaves the range of its type.
    pub(super) fn stored(&self, name: &str, values: &Tensor) -> Result<Option<Vec<f32>>> {
        let entry = self.weights.entry(name)?;
        if matches!(entry.dtype(), DType::F32 | DType::F64) {
            return Ok(None);
        }
        let (rows, mut stored) = (values.dim(0)?, Vec::with_capacity(values.elem_count()));
        for first in (0..rows).step_by(ROWS_AT_ONCE) {
            let rounded = values.narrow(0, first, ROWS_AT_ONCE.min(rows - first))?.to_dtype(entry.dtype())?;
            stored.extend(rounded.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?);
        }
        if stored.iter().all(|value| value.is_finite()) {
            return Ok(Some(stored));
        }
        let problem = format!(
            "pruned tensor `{name}` leaves the range of {:?}, the type it is stored in",
            entry.dtype()
        );
        Err(Error::content(self.weights.files()[entry.file()].path(), problem))
    }

    /// Has a slice's report describe its weight as it is stored, of which `change` gives tr(dW S dW^T) where it can.
    ///
    /// # Errors
    /// As [`Self::stored`], and those of `change`.
    pub(super) fn report_stored(
        &self,
        solved: &mut SolvedSlice,
        change: impl FnOnce(&[f32]) -> Option<Result<f64, SolveError>>,
    ) -> Result<()> {
        let SolvedSlice { weight, report, energy, .. } = solved;
        let Some(stored) = self.stored(&format!("{}.weight", report.name), weight)? else { return Ok(()) };
        report.zeros = zeros(&stored);
        if let (Some(energy), Some(change)) = (energy, change(&stored)) {
            let failed =
                |error: SolveError| Error::Site { name: report.name.clone(), problem: error.to_string() };
            *energy = OutputEnergy { change: change.map_err(failed)?, ..*energy };
            report.relative_error = Some(energy.relative());
        }
        Ok(())
    }
}

/// How many weights are 0.
pub(super) fn zeros(weight: &[f32]) -> u64 {
    weight.iter().filter(|w| **w == 0.0).count() as u64
}
