use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use obsdiff_proto::{Epoch, lock};

use crate::collective::{Abort, CollectiveError, Rendezvous, Result};

/// A rendezvous among threads.
#[derive(Default)]
pub(in crate::collective) struct ThreadRendezvous {
    values: Mutex<BTreeMap<(Epoch, String), Vec<u8>>>,
    changed: Condvar,
}

impl Rendezvous for Arc<ThreadRendezvous> {
    fn address(&self) -> Result<IpAddr> {
        Ok(Ipv4Addr::LOCALHOST.into())
    }

    fn put(&self, epoch: Epoch, key: &str, value: Vec<u8>) -> Result<()> {
        let mut values = lock(&self.values);
        let first = values.entry((epoch, key.to_owned())).or_insert_with(|| value.clone());
        self.changed.notify_all();
        if *first == value {
            Ok(())
        } else {
            Err(CollectiveError::Transport(format!("{key} was put before")))
        }
    }

    fn wait(&self, epoch: Epoch, key: &str, most: Duration, abort: &Abort) -> Result<Option<Vec<u8>>> {
        let board = self.clone();
        abort.when_raised(move || {
            let _values = lock(&board.values);
            board.changed.notify_all();
        });
        let values = lock(&self.values);
        let missing = |values: &mut BTreeMap<_, _>| {
            !abort.is_raised() && !values.contains_key(&(epoch, key.to_owned()))
        };
        let waited = self.changed.wait_timeout_while(values, most, missing);
        let (values, _) = waited.unwrap_or_else(PoisonError::into_inner);
        if abort.is_raised() {
            Err(CollectiveError::Aborted)
        } else {
            Ok(values.get(&(epoch, key.to_owned())).cloned())
        }
    }
}
