//! Where ranks of a group find each other.

use std::net::IpAddr;
use std::time::Duration;

use obsdiff_proto::Epoch;

use super::{Abort, Result};

/// Small values by epoch and key, which the ranks of a group leave for each other. They last as long as their group.
pub trait Rendezvous: Send + Sync {
    /// The address of this machine at which the other ranks reach it.
    ///
    /// # Errors
    /// When there is no way to them.
    fn address(&self) -> Result<IpAddr>;

    /// Puts a value. The first one stays: putting the same again changes nothing.
    ///
    /// # Errors
    /// When the group is over, another value was put, or the coordinator cannot be reached.
    fn put(&self, epoch: Epoch, key: &str, value: Vec<u8>) -> Result<()>;

    /// Waits for a value, at most so long; none after it.
    ///
    /// # Errors
    /// When the group is over, the coordinator cannot be reached, or `abort` is raised.
    fn wait(&self, epoch: Epoch, key: &str, most: Duration, abort: &Abort) -> Result<Option<Vec<u8>>>;
}
