//! The workers of a job in one process, over the same path as those of other hosts: a worker state and a device's thread each, sessions
//! with the coordinator, and collectives among their threads.

use std::io;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use obsdiff_coordinator::clock::Clock;
use obsdiff_coordinator::{CoreDriver, JobState, MeasuredCourse, Outlook};
use obsdiff_core::Outcome;
use obsdiff_engine::model::DiffusionModel;
use obsdiff_proto::Measures;
use obsdiff_worker::collective::Local;
use obsdiff_worker::device::{
    GroupTimeouts, JobPartStore, Machine, PartStoreError, PruningEngine, WorkError, WorkerState, follow,
};
use obsdiff_worker::pruning_job::PruningJob;
use rayon::{ThreadPool, ThreadPoolBuilder};
use tokio::sync::watch;

use super::local::attend;
use super::{Display, Inputs, PhaseDisplay, RUN_SPAN};
use crate::job::JobFile;
use crate::progress::Progress;
use crate::traces::Traces;
use crate::{Error, Result};

/// Prunes with so many workers, each on a copy of `model`, until the pipeline is written; gives one that has applied everything, and how the
/// job went by this clock. They save their sums with this period at least in between, where there is one.
///
/// # Errors
/// What failed at a worker, or why the coordinator gave up.
pub(super) fn run_workers<'a>(
    work: &'a PruningJob<'a>,
    (job, inputs): (&JobFile, &Inputs),
    state: &JobState,
    model: Box<dyn DiffusionModel>,
    (workers, save_every): (usize, Option<Duration>),
    (progress, outlook, traces): (&Progress, Option<&watch::Sender<Outlook>>, Option<Traces>),
    clock: Clock,
) -> Result<(PruningEngine<'a>, MeasuredCourse)> {
    let phase_display = Arc::new(PhaseDisplay::default());
    let steps = work.trajectories.step_count() as u64;
    let mut display = Display::new(inputs, steps, progress, phase_display.clone());
    if let Some(outlook) = outlook {
        display = display.with_outlook(outlook.clone());
    }
    let records = Box::new(state.records());
    let mut of_process = state.job.clone();
    // No worker has outlived its process, so none comes back.
    of_process.options.settle = Duration::ZERO;
    let (mut driver, handle) = CoreDriver::new(of_process, records, clock, Box::new((display, traces)))
        .map_err(|e| Error::content(job.path(), e.to_string()))?;
    let transport = Arc::new(Local::default());
    let worker_states: Vec<_> = (1..=workers.max(1) as u128)
        .map(|instance| {
            let machine = Machine { instance, speed: 1000, hardware: work.device.hardware() };
            let worker_state = WorkerState::new(machine, transport.clone(), GroupTimeouts::default());
            if let Some(period) = save_every {
                worker_state.save_every(period);
            }
            let device = work.device.clone();
            worker_state.measure_by(Box::new(move || Measures {
                opening_excess: device.opening_excess(),
                solving_excess: device.solving_excess(),
                ..Measures::default()
            }));
            worker_state
        })
        .collect();
    let device = |worker_state: &Arc<WorkerState>, model| {
        let _run = tracing::info_span!(RUN_SPAN).entered();
        let mut engine = work.engine(model, Arc::new(part_store(state)), phase_display.clone(), worker_state);
        follow(worker_state, &mut engine);
        engine
    };
    let threads = rayon::current_num_threads();
    let pools = pools(workers, threads)?;
    thread::scope(|scope| {
        let start = || {
            let named = |name: &str| thread::Builder::new().name(name.to_owned());
            let drive = move || {
                let outcome = state.runtime().block_on(driver.run());
                (outcome, driver.course().clone())
            };
            let driving = named("coordinator").spawn_scoped(scope, drive)?;
            let session = |worker_state| {
                let handle = handle.clone();
                named("session").spawn_scoped(scope, move || attend(worker_state, &handle))
            };
            let sessions = worker_states.iter().map(session).collect::<io::Result<Vec<_>>>()?;
            let worker = |(worker_state, pool)| {
                let (device, model, pool): (_, _, &ThreadPool) = (&device, model.duplicate(), pool);
                named("worker").spawn_scoped(scope, move || pool.install(|| device(worker_state, model)))
            };
            let devices = worker_states.iter().zip(&pools).map(worker).collect::<io::Result<Vec<_>>>()?;
            io::Result::Ok((driving, sessions, devices))
        };
        let (driving, sessions, devices) = match start() {
            Ok(started) => started,
            Err(error) => {
                // Those that were started end, and the scope with them.
                worker_states.iter().for_each(|worker_state| worker_state.close());
                handle.stop();
                phase_display.give_up();
                return Err(Error::thread(&error));
            }
        };
        // One that is alone takes over this thread, and with it the memory that loading and encoding have left.
        let own = match &*worker_states {
            [alone] => Some(std::panic::catch_unwind(AssertUnwindSafe(|| device(alone, model)))),
            _ => {
                // The workers have it, too, and let go of the weights that they replace.
                drop(model);
                None
            }
        };
        let ended = own.into_iter().chain(devices.into_iter().map(|device| device.join()));
        let (mut engines, mut panic) = (Vec::new(), None);
        for end in ended {
            match end {
                Ok(engine) => engines.push(engine),
                Err(payload) => panic = Some(payload),
            }
        }
        // No worker is left and none will come, so the driver has to stop.
        sessions.into_iter().for_each(|session| drop(session.join()));
        handle.stop();
        let (outcome, course) = driving.join().unwrap_or_else(|payload| std::panic::resume_unwind(payload));
        phase_display.give_up();
        if let (None, Some(payload)) = (&outcome, panic) {
            std::panic::resume_unwind(payload);
        }
        match outcome {
            Some(Outcome::Done) => {
                let engine = engines.into_iter().max_by_key(PruningEngine::applied);
                engine.map(|engine| (engine, course)).ok_or(Error::Cancelled)
            }
            Some(Outcome::Cancelled) => Err(Error::Cancelled),
            None => Err(Error::Session("all workers ended before the job was done".to_owned())),
            Some(Outcome::Failed(failure)) => match worker_states
                .iter()
                .find_map(|worker_state| worker_state.take_failure())
            {
                Some(WorkError::Engine(error)) => Err(error.into()),
                Some(WorkError::PartStore(PartStoreError::Damaged(problem))) => Err(Error::Damaged(problem)),
                _ => Err(Error::Failed(failure)),
            },
        }
    })
}

/// A pool for each of several workers, which share so many threads; none for a single one. Each computes on threads of its own: none waits
/// for another, except where their results meet.
fn pools(workers: usize, threads: usize) -> Result<Vec<ThreadPool>> {
    if workers <= 1 {
        return Ok(Vec::new());
    }
    let threads_of = |worker| (threads / workers + usize::from(worker < threads % workers)).max(1);
    let pool = |worker| ThreadPoolBuilder::new().num_threads(threads_of(worker)).build();
    (0..workers).map(|worker| pool(worker).map_err(|e| Error::thread(&e))).collect()
}

/// Where workers of this process put and find weights.
fn part_store(state: &JobState) -> JobPartStore {
    JobPartStore::new(state.store().clone(), state.runtime().handle().clone())
}
