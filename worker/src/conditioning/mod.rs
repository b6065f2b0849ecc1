//! The conditioning of a job's prompts. It is made once and put into the job's store; every worker reads it from there, a shard at a
//! time.

mod encode;
mod file;
mod object;
mod objects;
mod stored;

pub use encode::{encode_missing, put_missing};
pub use file::{ConditioningFile, ConditioningMetadata, is_ours, write_file};
pub use objects::ConditioningObjects;
pub use stored::StoredConditionings;

#[cfg(test)]
mod tests;
