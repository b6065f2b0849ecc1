//! How a worker reaches the others of its job.

use std::sync::Arc;

use obsdiff_engine::device::DeviceName;
#[cfg(any(feature = "gloo", feature = "cuda"))]
use obsdiff_proto::wire::Reach;
use obsdiff_worker::collective::{Alone, Transport};
use obsdiff_worker::rendezvous::PeerRendezvous;
use tokio::runtime::Runtime;
use tonic::transport::Endpoint;

use crate::Result;
use crate::cli::{CollectiveChoice, WorkerArgs};
use crate::progress::Progress;

/// How groups are joined, and where their members find each other; nowhere for a worker that works alone.
pub(super) type Peers = (Arc<dyn Transport>, Option<Arc<PeerRendezvous>>);

/// Whether the Grams of a worker come into the host's memory: without NCCL they are summed there.
pub(super) fn sums_on_host(args: &WorkerArgs) -> bool {
    args.device == DeviceName::Cpu || args.collective == Some(CollectiveChoice::Gloo)
}

/// Connects to the other workers as `--collective` says. Neither Gloo nor NCCL encrypts its connections, so a worker joins others on
/// another machine only with `--insecure`.
///
/// # Errors
/// When this build or this host cannot do what `--collective` says.
pub(super) fn reach(
    args: &WorkerArgs,
    coordinator: &Endpoint,
    progress: &Progress,
    runtime: &Runtime,
) -> Result<Peers> {
    let own = match args.device {
        DeviceName::Cpu => None,
        DeviceName::Cuda(gpu) => Some(gpu),
    };
    match (args.collective, own) {
        (Some(CollectiveChoice::Gloo), _) | (None, None) => Ok(by_gloo(args, coordinator, runtime)),
        (Some(CollectiveChoice::Nccl { gpu: Some(gpu) }), Some(own)) if gpu != own => {
            let problem = format!("is another GPU than that of --device cuda:{own}: leave the number away");
            Err(crate::Error::key(format!("--collective nccl:{gpu}"), problem))
        }
        (Some(CollectiveChoice::Nccl { gpu }), own) => {
            by_nccl(gpu.or(own).unwrap_or(0), args, coordinator, progress, runtime)
        }
        (None, Some(own)) => by_nccl(own, args, coordinator, progress, runtime),
    }
}

#[cfg(feature = "gloo")]
fn by_gloo(args: &WorkerArgs, coordinator: &Endpoint, runtime: &Runtime) -> Peers {
    use obsdiff_worker::collective::Gloo;
    let Some(rendezvous) = rendezvous(Reach::Gloo, args, coordinator, runtime) else { return alone() };
    (Arc::new(Gloo::new(rendezvous.clone())), Some(rendezvous))
}

/// Does not connect to other workers: this build has no network collective.
#[cfg(not(feature = "gloo"))]
fn by_gloo(_: &WorkerArgs, _: &Endpoint, _: &Runtime) -> Peers {
    alone()
}

#[cfg(feature = "cuda")]
fn by_nccl(
    gpu: usize,
    args: &WorkerArgs,
    coordinator: &Endpoint,
    progress: &Progress,
    runtime: &Runtime,
) -> Result<Peers> {
    use obsdiff_worker::collective::{Nccl, NcclSettings};
    let Some(rendezvous) = rendezvous(Reach::Nccl, args, coordinator, runtime) else { return Ok(alone()) };
    let progress = progress.clone();
    let on_stuck = Arc::new(move |why: &str| {
        progress.note(&format!("{why}; this process ends, and its shards are run again"));
        // What hangs would hang in the libraries' own exit as well.
        signal_hook::low_level::exit(i32::from(crate::error::RESUMABLE));
    });
    let nccl = Nccl::open(rendezvous.clone(), NcclSettings::new(gpu, on_stuck));
    let nccl = nccl.map_err(|e| refused(gpu, &e.to_string()))?;
    Ok((Arc::new(nccl), Some(rendezvous)))
}

#[cfg(not(feature = "cuda"))]
fn by_nccl(gpu: usize, _: &WorkerArgs, _: &Endpoint, _: &Progress, _: &Runtime) -> Result<Peers> {
    Err(refused(gpu, "this build has no NCCL: build obsdiff with --features cuda"))
}

fn refused(gpu: usize, problem: &str) -> crate::Error {
    crate::Error::Key { at: format!("--collective nccl:{gpu}"), problem: problem.to_owned() }
}

/// The coordinator's rendezvous, where this worker may use it.
#[cfg(any(feature = "gloo", feature = "cuda"))]
fn rendezvous(
    reach: Reach,
    args: &WorkerArgs,
    coordinator: &Endpoint,
    runtime: &Runtime,
) -> Option<Arc<PeerRendezvous>> {
    use obsdiff_worker::collective::Rendezvous;
    let rendezvous = PeerRendezvous::new(runtime.handle().clone(), coordinator.clone(), reach);
    let here = rendezvous.address().is_ok_and(|address| address.to_canonical().is_loopback());
    (here || args.security.insecure).then(|| Arc::new(rendezvous))
}

fn alone() -> Peers {
    (Arc::new(Alone::default()), None)
}
