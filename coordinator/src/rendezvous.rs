//! The rendezvous by which the workers of a group find each other: small values by epoch and key, kept as long as the group lasts.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use obsdiff_core::Group;
use obsdiff_proto::wire::{Put, Wait, WireError, v1};
use obsdiff_proto::{Epoch, WorkerId, lock};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};
use tonic::{Request, Response, Status};

/// Values that a member may put.
const VALUES: usize = 8;
/// Bytes that all members together may put.
const BYTES: usize = 64 << 20;
/// The longest wait. The coordinator gives up a group before that.
const LONGEST_WAIT: Duration = Duration::from_secs(120);

/// The rendezvous of a job's open group.
#[derive(Default)]
pub struct RendezvousService {
    group_values: Mutex<Option<GroupValues>>,
    changed: Notify,
}

/// What the members of a group have put.
struct GroupValues {
    epoch: Epoch,
    /// Those who are still here.
    members: BTreeSet<WorkerId>,
    values: BTreeMap<String, (WorkerId, Bytes)>,
    bytes: usize,
}

impl RendezvousService {
    /// Opens the rendezvous of a group, and ends that of any other group.
    pub(super) fn hold(&self, group: Option<&Group>) {
        let mut group_values = self.group_values();
        if group_values.as_ref().map(|group_values| group_values.epoch) == group.map(|group| group.epoch) {
            return;
        }
        *group_values = group.map(|group| GroupValues {
            epoch: group.epoch,
            members: group.members.iter().copied().collect(),
            values: BTreeMap::new(),
            bytes: 0,
        });
        drop(group_values);
        self.changed.notify_waiters();
    }

    /// A worker's session is over.
    pub(super) fn leave(&self, worker: WorkerId) {
        if let Some(group_values) = self.group_values().as_mut() {
            group_values.members.remove(&worker);
        }
        self.changed.notify_waiters();
    }

    fn group_values(&self) -> MutexGuard<'_, Option<GroupValues>> {
        lock(&self.group_values)
    }

    fn put(&self, put: Put) -> Result<(), Status> {
        let mut group_values = self.group_values();
        let group_values = enter(&mut group_values, put.epoch, put.worker)?;
        match group_values.values.get(&put.key) {
            Some((_, value)) if *value == put.value => return Ok(()),
            Some(_) => return Err(Status::already_exists(format!("{} was put before", put.key))),
            None => {}
        }
        let own = group_values.values.values().filter(|(worker, _)| *worker == put.worker).count();
        if own == VALUES || group_values.bytes + put.value.len() > BYTES {
            return Err(Status::resource_exhausted("the members of the group put too much"));
        }
        group_values.bytes += put.value.len();
        group_values.values.insert(put.key, (put.worker, put.value));
        self.changed.notify_waiters();
        Ok(())
    }

    async fn wait(&self, wait: &Wait) -> Result<Bytes, Status> {
        let end = Instant::now() + wait.timeout.min(LONGEST_WAIT);
        loop {
            // Every change from here on wakes this task.
            let changed = self.changed.notified();
            {
                let mut group_values = self.group_values();
                let group_values = enter(&mut group_values, wait.epoch, wait.worker)?;
                if let Some((_, value)) = group_values.values.get(&wait.key) {
                    return Ok(value.clone());
                }
            }
            let late = |_| Status::deadline_exceeded(format!("{} was not put in time", wait.key));
            timeout_at(end, changed).await.map_err(late)?;
        }
    }
}

/// The values of an epoch's group, for its members only.
fn enter(
    group_values: &mut Option<GroupValues>,
    epoch: Epoch,
    worker: WorkerId,
) -> Result<&mut GroupValues, Status> {
    let over = || Status::failed_precondition(format!("group {epoch} is over"));
    let group_values =
        group_values.as_mut().filter(|group_values| group_values.epoch == epoch).ok_or_else(over)?;
    if group_values.members.contains(&worker) {
        Ok(group_values)
    } else {
        Err(Status::permission_denied(format!("worker {worker} is not in group {epoch}")))
    }
}

#[tonic::async_trait]
impl v1::rendezvous_server::Rendezvous for RendezvousService {
    async fn put(&self, request: Request<v1::PutRequest>) -> Result<Response<v1::PutResponse>, Status> {
        RendezvousService::put(self, request.into_inner().try_into().map_err(misunderstood)?)?;
        Ok(Response::new(v1::PutResponse {}))
    }

    async fn wait(&self, request: Request<v1::WaitRequest>) -> Result<Response<v1::WaitResponse>, Status> {
        let wait = request.into_inner().try_into().map_err(misunderstood)?;
        let value = RendezvousService::wait(self, &wait).await?;
        Ok(Response::new(v1::WaitResponse { value }))
    }
}

fn misunderstood(error: WireError) -> Status {
    Status::invalid_argument(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(epoch: u64, members: &[u64]) -> Group {
        Group {
            epoch: Epoch(epoch),
            package: obsdiff_proto::PackageId(0),
            members: members.iter().copied().map(WorkerId).collect(),
            reductions: Vec::new(),
            owners: BTreeMap::new(),
        }
    }

    fn put(
        rendezvous: &RendezvousService,
        worker: u64,
        epoch: u64,
        key: &str,
        value: &[u8],
    ) -> Result<(), tonic::Code> {
        let value = Bytes::copy_from_slice(value);
        let put = Put { worker: WorkerId(worker), epoch: Epoch(epoch), key: key.to_owned(), value };
        rendezvous.put(put).map_err(|status| status.code())
    }

    async fn wait(
        rendezvous: &RendezvousService,
        worker: u64,
        epoch: u64,
        key: &str,
    ) -> Result<Bytes, tonic::Code> {
        let timeout = Duration::from_secs(30);
        let wait = Wait { worker: WorkerId(worker), epoch: Epoch(epoch), key: key.to_owned(), timeout };
        rendezvous.wait(&wait).await.map_err(|status| status.code())
    }

    #[tokio::test(start_paused = true)]
    async fn values_reach_the_members_of_their_epoch_alone_and_end_with_it() {
        use tonic::Code;
        let rendezvous = RendezvousService::default();
        assert_eq!(put(&rendezvous, 1, 7, "a", b"x"), Err(Code::FailedPrecondition));
        rendezvous.hold(Some(&group(7, &[1, 2])));
        let (value, answer) =
            tokio::join!(wait(&rendezvous, 2, 7, "a"), async { put(&rendezvous, 1, 7, "a", b"x") });
        assert_eq!((value, answer), (Ok(Bytes::from_static(b"x")), Ok(())));
        // A member may put the same value again, but no other one.
        assert_eq!(put(&rendezvous, 2, 7, "a", b"x"), Ok(()));
        assert_eq!(put(&rendezvous, 2, 7, "a", b"y"), Err(Code::AlreadyExists));
        assert_eq!(put(&rendezvous, 3, 7, "b", b"x"), Err(Code::PermissionDenied));
        assert_eq!(wait(&rendezvous, 2, 7, "b").await, Err(Code::DeadlineExceeded));
        // The group is still the same one.
        rendezvous.hold(Some(&group(7, &[1, 2])));
        assert_eq!(wait(&rendezvous, 1, 7, "a").await, Ok(Bytes::from_static(b"x")));
        rendezvous.leave(WorkerId(1));
        assert_eq!(wait(&rendezvous, 1, 7, "a").await, Err(Code::PermissionDenied));
        let (waited, ()) = tokio::join!(wait(&rendezvous, 2, 7, "b"), async { rendezvous.hold(None) });
        assert_eq!(waited, Err(Code::FailedPrecondition));
        rendezvous.hold(Some(&group(8, &[1, 2])));
        assert_eq!(wait(&rendezvous, 2, 7, "a").await, Err(Code::FailedPrecondition));
        assert_eq!(wait(&rendezvous, 2, 8, "a").await, Err(Code::DeadlineExceeded));
    }

    #[test]
    fn a_member_puts_at_most_so_much() {
        let rendezvous = RendezvousService::default();
        rendezvous.hold(Some(&group(1, &[1, 2])));
        for key in 0..VALUES {
            assert_eq!(put(&rendezvous, 1, 1, &key.to_string(), b"x"), Ok(()));
        }
        assert_eq!(put(&rendezvous, 1, 1, "more", b"x"), Err(tonic::Code::ResourceExhausted));
        assert_eq!(put(&rendezvous, 2, 1, "more", b"x"), Ok(()));
        let mut group_values = rendezvous.group_values();
        group_values.as_mut().unwrap().bytes = BYTES;
        drop(group_values);
        assert_eq!(put(&rendezvous, 2, 1, "much", b"x"), Err(tonic::Code::ResourceExhausted));
    }
}
