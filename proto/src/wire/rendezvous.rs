//! Where the workers of a collective find each other.

use std::time::Duration;

use bytes::Bytes;

use super::codec::Codec;
use super::field::{AtMost, Millis, length};
use super::{FieldProblem, LONGEST_KEY, LONGEST_VALUE, Result, WireError, v1};
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

message! { Put = v1::PutRequest { worker, epoch, key: PeerKey, value: PeerValue } }

message! { Wait = v1::WaitRequest { worker, epoch, key: PeerKey; renamed timeout = timeout_millis: Millis } }

impl v1::WaitResponse {
    /// The value waited for.
    ///
    /// # Errors
    /// When it is too long to be one.
    pub fn into_value(self) -> Result<Bytes> {
        PeerValue.read("value", self.value)
    }
}

/// Names a value. It may not be empty.
struct PeerKey;

impl Codec<String, String> for PeerKey {
    fn write(&self, value: &String) -> String {
        value.clone()
    }

    fn read(&self, field: &str, wire: String) -> Result<String> {
        if wire.is_empty() {
            return Err(WireError::new(field, FieldProblem::Missing));
        }
        AtMost(LONGEST_KEY).read(field, wire)
    }
}

/// A value that one member leaves for another.
struct PeerValue;

impl Codec<Bytes, Bytes> for PeerValue {
    fn write(&self, value: &Bytes) -> Bytes {
        value.clone()
    }

    fn read(&self, field: &str, wire: Bytes) -> Result<Bytes> {
        length(field, wire.len(), LONGEST_VALUE).map(|()| wire)
    }
}
