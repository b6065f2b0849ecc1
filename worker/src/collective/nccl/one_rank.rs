//! A group of one, by NCCL itself: whether NCCL works on a GPU.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use obsdiff_proto::Epoch;

use super::{Nccl, NcclSettings};
use crate::collective::{Abort, Buffer, Collective, CollectiveError, Member, Rendezvous, Result, Values};

/// How long NCCL may take to form the group, and to answer.
const LIMIT: Duration = Duration::from_secs(60);

/// Where nobody else comes.
struct NobodyElse;

impl Rendezvous for NobodyElse {
    fn address(&self) -> Result<IpAddr> {
        Ok(Ipv4Addr::LOCALHOST.into())
    }

    fn put(&self, _: Epoch, _: &str, _: Vec<u8>) -> Result<()> {
        Ok(())
    }

    fn wait(&self, _: Epoch, _: &str, most: Duration, abort: &Abort) -> Result<Option<Vec<u8>>> {
        let (raises, raised) = mpsc::channel::<()>();
        abort.when_raised(move || drop(raises));
        match raised.recv_timeout(most) {
            Err(RecvTimeoutError::Timeout) => Ok(None),
            _ => Err(CollectiveError::Aborted),
        }
    }
}

impl Nccl {
    /// Forms a group of one on a GPU by NCCL itself, sums these numbers over it, and leaves it. Gives the sums.
    ///
    /// # Errors
    /// When NCCL, the driver or the GPU is missing or fails.
    pub fn sum_alone(settings: NcclSettings, own: &[i64]) -> Result<Vec<i64>> {
        let nccl = Self::open(Arc::new(NobodyElse), settings)?;
        let member = Member { epoch: Epoch(1), rank: 0, world: 1, form: LIMIT, silence: LIMIT };
        let mut sums = vec![0; own.len()];
        let mut rank = nccl.form(member, &Abort::default())?;
        rank.all_reduce(Values::I64(own), Buffer::I64(&mut sums))?;
        Ok(sums)
    }
}
