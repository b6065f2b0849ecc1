//! The conditioning of a job's prompts: made once, into the job's store, and read from there a shard at a time by every worker.

mod encode;
mod file;
mod object;
mod objects;
mod stored;

pub use encode::{encode_missing, put_missing};
pub use file::{AboutConditionings, ConditioningFile, is_ours, write_file};
pub use objects::{ConditioningObjects, made_by};
pub use stored::StoredConditionings;

#[cfg(test)]
mod tests;
