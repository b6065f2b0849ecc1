//! Who left a group, and why.
//!
//! NCCL says at best that some peer is lost; a rank that leaves in good order it does not notice at all, and those who wait for it would
//! wait for ever. So each rank that leaves says so by the rendezvous, in a list of one entry a rank, and each has a thread that reads it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use obsdiff_proto::lock;
use serde::{Deserialize, Serialize};

use crate::collective::{Abort, CollectiveError, Member, Rendezvous, Result};

/// How long one question to the rendezvous waits for the next entry.
const WAIT: Duration = Duration::from_secs(60);

/// An entry: a rank has left.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Departure {
    rank: usize,
    /// The calls that it has made, where it left in good order: peers finish those. None after a fault, which ends the group at once.
    calls: Option<u64>,
    why: String,
}

/// The departures of a group, as its rank and the thread that reads them share them.
pub(super) struct Departures {
    member: Member,
    rendezvous: Arc<dyn Rendezvous>,
    abort: Abort,
    /// Ends the reading.
    stop: Abort,
    announced: AtomicBool,
    state: Mutex<DepartureState>,
    changed: Condvar,
}

#[derive(Default)]
struct DepartureState {
    /// In the order in which they were announced.
    left: Vec<Departure>,
    /// The place of the next entry.
    next: usize,
    /// The rendezvous gives no more: the group is over for the coordinator.
    closed: bool,
}

impl Departures {
    /// Begins to read the departures of a member's group. An abort ends all waiting here, and the group for its peers.
    pub(super) fn follow(
        member: Member,
        rendezvous: Arc<dyn Rendezvous>,
        abort: Abort,
    ) -> std::io::Result<Arc<Self>> {
        let departures = Arc::new(Self {
            member,
            rendezvous,
            abort: abort.clone(),
            stop: Abort::default(),
            announced: AtomicBool::new(false),
            state: Mutex::default(),
            changed: Condvar::new(),
        });
        let reading = departures.clone();
        std::thread::Builder::new()
            .name(format!("departures of {}", member.epoch))
            .spawn(move || reading.read())?;
        let weak = Arc::downgrade(&departures);
        abort.when_raised(move || {
            if let Some(departures) = weak.upgrade() {
                departures.stop.raise();
                departures.wake();
            }
        });
        Ok(departures)
    }

    fn read(&self) {
        let Member { epoch, world, rank, .. } = self.member;
        let mut next = 0;
        while next < world && !self.stop.is_raised() {
            match self.rendezvous.wait(epoch, &key(next), WAIT, &self.stop) {
                Ok(None) => {}
                Ok(Some(entry)) => {
                    next += 1;
                    let mut state = lock(&self.state);
                    state.next = next;
                    // What cannot be read is from nobody of this group.
                    if let Ok(departure) = serde_json::from_slice::<Departure>(&entry)
                        && departure.rank != rank
                    {
                        state.left.push(departure);
                    }
                    drop(state);
                    self.changed.notify_all();
                }
                Err(error) => {
                    lock(&self.state).closed = !self.stop.is_raised();
                    tracing::debug!(%error, %epoch, "departures are not read any more");
                    break;
                }
            }
        }
        if self.abort.is_raised() {
            // Peers hear of it also while this rank is in no call.
            self.announce(None, CollectiveError::Aborted.to_string());
        }
    }

    /// Whether a call may go on, which is this rank's `call`-th.
    pub(super) fn check(&self, call: u64) -> Result<()> {
        if self.abort.is_raised() {
            return Err(CollectiveError::Aborted);
        }
        lost(&lock(&self.state), call).map_or(Ok(()), Err)
    }

    /// The peer that left, where a peer's departure is what failed a call. Its entry may be on its way for so long.
    pub(super) fn culprit(&self, call: u64, most: Duration) -> Option<CollectiveError> {
        let unknown = |state: &mut DepartureState| {
            !self.abort.is_raised() && !state.closed && lost(state, call).is_none()
        };
        let waited = self.changed.wait_timeout_while(lock(&self.state), most, unknown);
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        if self.abort.is_raised() { Some(CollectiveError::Aborted) } else { lost(&state, call) }
    }

    /// Waits so long, or until something is to be checked.
    pub(super) fn pause(&self, most: Duration) {
        let state = lock(&self.state);
        if !self.abort.is_raised() {
            drop(self.changed.wait_timeout(state, most));
        }
    }

    fn wake(&self) {
        drop(lock(&self.state));
        self.changed.notify_all();
    }

    /// Announces to the peers, once, that this rank has left, and stops reading. May wait for the coordinator.
    pub(super) fn announce(&self, calls: Option<u64>, why: String) {
        if self.announced.swap(true, Ordering::AcqRel) {
            return;
        }
        let Member { epoch, world, rank, .. } = self.member;
        let (closed, next) = {
            let state = lock(&self.state);
            (state.closed, state.next)
        };
        let entry = serde_json::to_vec(&Departure { rank, calls, why });
        if let (Ok(entry), false) = (entry, closed) {
            for place in next..world {
                if self.rendezvous.put(epoch, &key(place), entry.clone()).is_ok() {
                    break;
                }
                // Another rank has this place, or the group is over.
                let taken = self.rendezvous.wait(epoch, &key(place), Duration::ZERO, &Abort::default());
                if !matches!(taken, Ok(Some(_))) {
                    break;
                }
            }
        }
        self.stop.raise();
    }
}

/// The fault of a peer, or that it left before this rank's `call`-th call.
fn lost(state: &DepartureState, call: u64) -> Option<CollectiveError> {
    let before = |departure: &&Departure| departure.calls.is_none_or(|calls| calls < call);
    let departure = state.left.iter().find(before)?;
    Some(CollectiveError::PeerLost { rank: departure.rank, why: departure.why.clone() })
}

fn key(place: usize) -> String {
    format!("left/{place}")
}
