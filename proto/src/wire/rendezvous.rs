//! Where the workers of a collective find each other.

use std::time::Duration;

use bytes::Bytes;

use super::field::{length, millis, text};
use super::{LONGEST_KEY, LONGEST_VALUE, Problem, Result, WireError, v1};
use crate::{Epoch, WorkerId};

/// Puts a value for the other members of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Put {
    /// Who puts it.
    pub worker: WorkerId,
    /// The group's epoch.
    pub epoch: Epoch,
    /// Its key; at most [`LONGEST_KEY`] bytes, and not empty.
    pub key: String,
    /// Its content; at most [`LONGEST_VALUE`] bytes.
    pub value: Bytes,
}

/// Waits for a value of another member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wait {
    /// Who waits.
    pub worker: WorkerId,
    /// The group's epoch.
    pub epoch: Epoch,
    /// The value's key.
    pub key: String,
    /// The longest wait; whole milliseconds.
    pub timeout: Duration,
}

impl From<&Put> for v1::PutRequest {
    fn from(put: &Put) -> Self {
        Self { worker: put.worker.0, epoch: put.epoch.0, key: put.key.clone(), value: put.value.clone() }
    }
}

impl TryFrom<v1::PutRequest> for Put {
    type Error = WireError;

    fn try_from(put: v1::PutRequest) -> Result<Self> {
        Ok(Self {
            worker: WorkerId(put.worker),
            epoch: Epoch(put.epoch),
            key: key(put.key)?,
            value: value(put.value)?,
        })
    }
}

impl From<&Wait> for v1::WaitRequest {
    fn from(wait: &Wait) -> Self {
        Self {
            worker: wait.worker.0,
            epoch: wait.epoch.0,
            key: wait.key.clone(),
            timeout_millis: millis(wait.timeout),
        }
    }
}

impl TryFrom<v1::WaitRequest> for Wait {
    type Error = WireError;

    fn try_from(wait: v1::WaitRequest) -> Result<Self> {
        Ok(Self {
            worker: WorkerId(wait.worker),
            epoch: Epoch(wait.epoch),
            key: key(wait.key)?,
            timeout: Duration::from_millis(wait.timeout_millis),
        })
    }
}

impl v1::WaitResponse {
    /// The value waited for.
    ///
    /// # Errors
    /// When it is too long to be one.
    pub fn into_value(self) -> Result<Bytes> {
        value(self.value)
    }
}

fn key(key: String) -> Result<String> {
    if key.is_empty() { Err(WireError::new("key", Problem::Missing)) } else { text("key", key, LONGEST_KEY) }
}

fn value(value: Bytes) -> Result<Bytes> {
    length("value", value.len(), LONGEST_VALUE).map(|()| value)
}
