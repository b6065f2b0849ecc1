//! Groups of processes on any hosts, over TCP by Gloo.
//!
//! Gloo connects the ranks and moves the bytes. Which rank adds what is decided here, as floats are added in the order of ranks and a
//! lost peer or an abort has to free every wait: Gloo's own algorithms keep their buffers to themselves.

mod mesh;
mod rank;

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use super::newest::NewestEpoch;
use super::{Abort, Alone, Collective, CollectiveError, Member, Rendezvous, Result, Transport};
use mesh::{Ended, Mesh, Report, open_mesh};
use rank::GlooRank;

/// Joins one worker of this process to groups with others, whose addresses it finds by a rendezvous.
pub struct Gloo {
    rendezvous: Arc<dyn Rendezvous>,
    alone: Alone,
    newest: NewestEpoch,
}

impl Gloo {
    /// A worker that finds its peers so.
    pub fn new(rendezvous: Arc<dyn Rendezvous>) -> Self {
        Self { rendezvous, alone: Alone::default(), newest: NewestEpoch::default() }
    }

    /// Leaves this rank's addresses for its peers, one for each.
    fn publish(&self, member: Member, mesh: &Mesh) -> Result<()> {
        let mut addresses = Vec::new();
        for peer in peers(member) {
            addresses.extend(mesh.address(peer).map_err(broken)?);
        }
        self.rendezvous.put(member.epoch, &key(member.rank), addresses)
    }

    /// Waits until every peer has left its addresses; gives the one of each that is meant for this rank.
    fn addresses(&self, member: Member, begun: Instant, abort: &Abort) -> Result<Vec<(usize, Vec<u8>)>> {
        let mut addresses = Vec::new();
        for peer in peers(member) {
            let left = member.form.saturating_sub(begun.elapsed());
            let Some(all) = self.rendezvous.wait(member.epoch, &key(peer), left, abort)? else {
                return Err(CollectiveError::Timeout { ranks: vec![peer], waited: begun.elapsed() });
            };
            // The peer's own place has no address.
            let index = if member.rank < peer { member.rank } else { member.rank - 1 };
            let length = all.len() / (member.world - 1);
            let own = all.get(index * length..(index + 1) * length).unwrap_or_default();
            addresses.push((peer, own.to_vec()));
        }
        Ok(addresses)
    }
}

impl Transport for Gloo {
    fn join(&self, member: Member, abort: &Abort) -> Result<Box<dyn Collective>> {
        member.check()?;
        self.newest.take(member.epoch)?;
        if member.world == 1 {
            return self.alone.join(member, abort);
        }
        let begun = Instant::now();
        let host = self.rendezvous.address()?.to_string();
        let mesh = open_mesh(&host, member.rank, member.world, millis(member.form)).map_err(broken)?;
        let mesh = Arc::new(SharedMesh(mesh));
        let watcher = {
            let mesh = mesh.clone();
            let name = format!("peers of {}", member.epoch);
            let watch = move || {
                if let Err(error) = mesh.watch() {
                    tracing::warn!(%error, "the peers of a group are not watched any more");
                }
            };
            thread::Builder::new().name(name).spawn(watch).map_err(broken)?
        };
        let mut rank = GlooRank::new(member, mesh.clone(), watcher, abort.clone());
        let weak = Arc::downgrade(&mesh);
        abort.when_raised(move || {
            if let Some(mesh) = weak.upgrade() {
                mesh.end_hard();
            }
        });
        match self.meet(&mut rank, &mesh, begun, abort) {
            Ok(()) => Ok(Box::new(rank)),
            Err(error) => {
                mesh.end_hard();
                Err(error)
            }
        }
    }
}

impl Gloo {
    /// Connects a rank to all others.
    fn meet(&self, rank: &mut GlooRank, mesh: &Mesh, begun: Instant, abort: &Abort) -> Result<()> {
        let member = *rank.member();
        self.publish(member, mesh)?;
        // All are there: what is left takes milliseconds.
        for (peer, address) in self.addresses(member, begun, abort)? {
            let report = mesh.connect(peer, &address).map_err(broken)?;
            check(&report, begun, abort)?;
        }
        mesh.connected().map_err(broken)?;
        rank.greet(member.form.saturating_sub(begun.elapsed()))
    }
}

/// A mesh as the threads of a rank share it.
struct SharedMesh(cxx::UniquePtr<Mesh>);

impl std::ops::Deref for SharedMesh {
    type Target = Mesh;

    fn deref(&self) -> &Mesh {
        // Made by `open_mesh` alone, which gives a mesh or an error.
        &self.0
    }
}

impl SharedMesh {
    fn end_hard(&self) {
        if let Err(error) = self.end(true) {
            tracing::warn!(%error, "a group was not left in good order");
        }
    }
}

/// What a report says of a rank's group.
fn check(report: &Report, begun: Instant, abort: &Abort) -> Result<()> {
    match report.ended {
        Ended::Well => Ok(()),
        _ if abort.is_raised() => Err(CollectiveError::Aborted),
        Ended::Silent => Err(CollectiveError::Timeout { ranks: vec![report.rank], waited: begun.elapsed() }),
        Ended::Lost => Err(CollectiveError::PeerLost { rank: report.rank, why: words(&report.why) }),
        _ => Err(CollectiveError::Transport("the group was left".to_owned())),
    }
}

/// What Gloo says, without the place in its sources.
fn words(why: &str) -> String {
    match why.strip_prefix('[').and_then(|rest| rest.split_once("] ")) {
        Some((_, words)) => words.to_owned(),
        None => why.to_owned(),
    }
}

fn broken(error: impl std::fmt::Display) -> CollectiveError {
    CollectiveError::Transport(words(&error.to_string()))
}

fn peers(member: Member) -> impl Iterator<Item = usize> {
    (0..member.world).filter(move |peer| *peer != member.rank)
}

fn key(rank: usize) -> String {
    format!("addresses/{rank}")
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX).clamp(1, 1 << 40)
}

#[cfg(test)]
pub(in crate::collective) mod tests;
