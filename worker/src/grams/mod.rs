//! Grams that outlive their job: kept while its sites are solved, and read by other jobs in place of calibration.

mod index;
mod job;
mod keeper;
mod kept;
pub(crate) mod object;

pub use index::{GramIndex, GramOfFewer, KeptSite};
pub use job::JobGrams;
pub(crate) use keeper::SolvedBy;
pub use keeper::{GramKeeper, GramOrigin};
pub use kept::KeptGrams;
