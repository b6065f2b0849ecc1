//! The conditioning of a job's prompts: made once, into the job's store, and read from there a shard at a time by every worker.

mod encode;
mod object;
mod objects;
mod stored;

pub use encode::encode_missing;
pub use objects::ConditioningObjects;
pub use stored::StoredConditionings;

#[cfg(test)]
mod tests;
