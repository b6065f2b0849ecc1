//! The metrics by name. Units are in their names: `_seconds`, `_bytes`, `_ratio`; what only grows ends in `_total`.

use std::time::Duration;

use obsdiff_core::Event;
use obsdiff_proto::view::{Ending, JobReport, Phase, View, WorkerView};
use prometheus::core::Collector;
use prometheus::{Counter, Gauge, GaugeVec, IntCounter, IntGaugeVec, Opts, Registry, Result};

use super::workers::WorkerTotals;

/// Phases by the names that `status` gives them.
const PHASES: [Phase; 8] = [
    Phase::Pilot,
    Phase::Calibrate,
    Phase::Reduce,
    Phase::Solve,
    Phase::Commit,
    Phase::Apply,
    Phase::Export,
    Phase::Over,
];

/// All metrics, and the registry that lists them.
pub(super) struct Families {
    pub(super) registry: Registry,
    phase: IntGaugeVec,
    ended: IntGaugeVec,
    elapsed: Gauge,
    left: GaugeVec,
    packages: IntGaugeVec,
    shards: IntGaugeVec,
    parts: IntGaugeVec,
    probes: IntGaugeVec,
    workers: IntGaugeVec,
    workers_joined: IntCounter,
    workers_lost: IntCounter,
    shards_lost: IntCounter,
    shards_restored: IntCounter,
    epochs: IntCounter,
    groups_broken: IntCounter,
    retries: IntCounter,
    exponents_lowered: IntCounter,
    damping_raised: IntCounter,
    prompt_steps: IntCounter,
    forward: Counter,
    gram: Counter,
    solve: Counter,
    reduced: IntCounter,
    sparsity: GaugeVec,
    error: GaugeVec,
    worker_shard: GaugeVec,
    worker_memory: IntGaugeVec,
    worker_planned_memory: IntGaugeVec,
    worker_gpu_memory: IntGaugeVec,
}

/// Makes metrics and lists them.
struct Maker(Registry);

impl Maker {
    fn listed<T: Collector + Clone + 'static>(&self, made: Result<T>) -> Result<T> {
        let made = made?;
        self.0.register(Box::new(made.clone()))?;
        Ok(made)
    }

    fn integer_counter(&self, name: &str, help: &str) -> Result<IntCounter> {
        self.listed(IntCounter::new(name, help))
    }

    fn counter(&self, name: &str, help: &str) -> Result<Counter> {
        self.listed(Counter::new(name, help))
    }

    fn gauge(&self, name: &str, help: &str) -> Result<Gauge> {
        self.listed(Gauge::new(name, help))
    }

    /// A number that is absent at times: it has as many labels as there are given, also none.
    fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> Result<GaugeVec> {
        self.listed(GaugeVec::new(Opts::new(name, help), labels))
    }

    fn integer_gauges(&self, name: &str, help: &str, label: &str) -> Result<IntGaugeVec> {
        self.listed(IntGaugeVec::new(Opts::new(name, help), &[label]))
    }

    /// Something of each worker, by state. The sum over all states is the whole.
    fn states_of_workers(&self, name: &str, help: &str) -> Result<IntGaugeVec> {
        self.listed(IntGaugeVec::new(Opts::new(name, help), &["worker", "state"]))
    }
}

impl Families {
    pub(super) fn new() -> Result<Self> {
        let make = Maker(Registry::new());
        let build =
            make.integer_gauges("obsdiff_build_info", "The coordinator's release; always 1.", "version")?;
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        Ok(Self {
            phase: make.integer_gauges("obsdiff_job_phase", "What the job is busy with: 1 for that phase, 0 for others.", "phase")?,
            ended: make.integer_gauges("obsdiff_job_ended", "How the job ended: 1 for that outcome; 0 everywhere while it runs.", "outcome")?,
            elapsed: make.gauge("obsdiff_job_elapsed_seconds", "Time since this coordinator started.")?,
            left: make.gauges("obsdiff_job_time_left_seconds", "The estimated time until the job is done, if there is an estimate.", &[])?,
            packages: make.integer_gauges("obsdiff_packages", "Packages of the job by state: committed, open or pending.", "state")?,
            shards: make.integer_gauges("obsdiff_shards", "Shards of the open package by state: held in a worker's sums, leased to a worker, or pending.", "state")?,
            parts: make.integer_gauges("obsdiff_parts", "Parts of the open package by state: solved or pending.", "state")?,
            probes: make.integer_gauges("obsdiff_probes", "Linears that the job probes to find what pruning each costs, by state: done or pending.", "state")?,
            workers: make.integer_gauges("obsdiff_workers", "Connected workers by state: working, preparing or draining.", "state")?,
            workers_joined: make.integer_counter("obsdiff_workers_joined_total", "Workers that joined, those included that came back.")?,
            workers_lost: make.integer_counter("obsdiff_workers_lost_total", "Workers that left while the job ran, but for those that drained.")?,
            shards_lost: make.integer_counter("obsdiff_shards_lost_total", "Shards that are run again because the sums with them were lost.")?,
            shards_restored: make.integer_counter("obsdiff_shards_restored_total", "Shards that were not run again because saved sums have them.")?,
            epochs: make.integer_counter("obsdiff_epochs_total", "Groups of workers that began to form to reduce Grams.")?,
            groups_broken: make.integer_counter("obsdiff_groups_broken_total", "Groups of workers that were given up.")?,
            retries: make.integer_counter("obsdiff_retries_total", "Failures after which the same was tried again.")?,
            exponents_lowered: make.integer_counter("obsdiff_exponents_lowered_total", "Exponents that were lowered because a Gram overflowed.")?,
            damping_raised: make.integer_counter("obsdiff_damping_raised_total", "Pruned linears whose Hessian needed more damping than the job asks for.")?,
            prompt_steps: make.integer_counter("obsdiff_prompt_steps_total", "Denoising steps of prompts that workers ran to calibrate; each brings one observation to every site.")?,
            forward: make.counter("obsdiff_forward_seconds_total", "Time of workers in forward calls, without the Grams that they sum.")?,
            gram: make.counter("obsdiff_gram_seconds_total", "Time of workers in which Grams were summed.")?,
            solve: make.counter("obsdiff_solve_seconds_total", "Time of workers in which linears, structures and probes were solved.")?,
            reduced: make.integer_counter("obsdiff_reduced_bytes_total", "Bytes of sums that workers gave to reductions.")?,
            sparsity: make.gauges("obsdiff_sparsity_ratio", "Share of zeros in the linears pruned so far.", &[])?,
            error: make.gauges("obsdiff_relative_error_ratio", "Mean relative output error of the linears pruned so far.", &[])?,
            worker_shard: make.gauges("obsdiff_worker_shard_seconds", "How long a shard takes a connected worker.", &["worker"])?,
            worker_memory: make.integer_gauges("obsdiff_worker_peak_memory_bytes", "The most memory that a connected worker has held.", "worker")?,
            worker_planned_memory: make.integer_gauges("obsdiff_worker_planned_memory_bytes", "The most memory that the plan expects of a connected worker.", "worker")?,
            worker_gpu_memory: make.states_of_workers("obsdiff_worker_gpu_memory_bytes", "The memory of a connected worker's GPU by state: used, by whatever process, or free.")?,
            registry: make.0,
        })
    }

    /// Counts something that happened.
    pub(super) fn count(&self, event: &Event) {
        match event {
            Event::Left { lost, drained, .. } => {
                self.workers_lost.inc_by(u64::from(!drained));
                self.shards_lost.inc_by(lost.len() as u64);
            }
            Event::Discarded { lost, .. } | Event::Unrestored { lost, .. } => {
                self.shards_lost.inc_by(lost.len() as u64)
            }
            Event::Restores { shards, .. } => self.shards_restored.inc_by(*shards as u64),
            Event::Grouped { .. } => self.epochs.inc(),
            Event::Broken { .. } => self.groups_broken.inc(),
            Event::Retried { .. } => self.retries.inc(),
            Event::Lowered { .. } => self.exponents_lowered.inc(),
            Event::Joined { .. } | Event::Preparing { .. } => self.workers_joined.inc(),
            Event::Encodes { .. }
            | Event::Ready { .. }
            | Event::Saved { .. }
            | Event::StandingBy { .. }
            | Event::Formed { .. }
            | Event::Arrived { .. }
            | Event::Committed { .. } => {}
        }
    }

    /// Raises counters to what workers have measured in all.
    pub(super) fn add(&self, workers: &WorkerTotals) {
        let (total, pruned) = (&workers.total, &workers.pruned);
        raise(&self.prompt_steps, total.prompt_steps);
        raise(&self.reduced, total.reduced_bytes);
        raise(&self.damping_raised, pruned.raised);
        raise_time(&self.forward, total.forward);
        raise_time(&self.gram, total.gram);
        raise_time(&self.solve, total.solve);
    }

    pub(super) fn show_probes(&self, done: usize, all: usize) {
        set(&self.probes, &[("done", done), ("pending", all.saturating_sub(done))]);
    }

    /// Shows a report.
    pub(super) fn show(&self, report: &JobReport) {
        let view = &report.view;
        self.elapsed.set(report.elapsed.as_secs_f64());
        self.left.reset();
        if let Some(left) = report.left {
            self.left.with_label_values::<&str>(&[]).set(left.as_secs_f64());
        }
        for phase in PHASES {
            self.phase.with_label_values(&[phase.to_string()]).set(i64::from(phase == view.phase));
        }
        let ending = |name| (name, usize::from(view.ending.as_ref().is_some_and(|e| ending_name(e) == name)));
        set(&self.ended, &["done", "cancelled", "failed"].map(ending));
        self.show_progress(view);
    }

    fn show_progress(&self, view: &View) {
        let committed = view.committed as usize;
        let open = usize::from(view.package.is_some());
        let pending = view.packages.saturating_sub(committed + open);
        set(&self.packages, &[("committed", committed), ("open", open), ("pending", pending)]);
        let leased = view.workers.iter().map(|worker| worker.leased).sum();
        let shards = if view.package.is_some() { view.shards } else { 0 };
        let pending = shards.saturating_sub(view.held + leased);
        set(&self.shards, &[("held", view.held), ("leased", leased), ("pending", pending)]);
        set(&self.parts, &[("solved", view.solved), ("pending", view.parts.saturating_sub(view.solved))]);
        let draining = view.workers.iter().filter(|w| w.draining).count();
        let preparing = view.workers.iter().filter(|w| w.preparing && !w.draining).count();
        let working = view.workers.len() - draining - preparing;
        set(&self.workers, &[("working", working), ("preparing", preparing), ("draining", draining)]);
    }

    /// Shows what connected workers measured, and what all packages so far have become.
    pub(super) fn show_workers(&self, views: &[WorkerView], workers: &WorkerTotals) {
        self.worker_shard.reset();
        self.worker_memory.reset();
        self.worker_planned_memory.reset();
        self.worker_gpu_memory.reset();
        for view in views {
            let id = [view.worker.to_string()];
            if let Some(pace) = view.pace {
                self.worker_shard.with_label_values(&id).set(pace.as_secs_f64());
            }
            let Some(measures) = workers.of(view.worker) else { continue };
            let memory = [
                (&self.worker_memory, measures.peak_memory),
                (&self.worker_planned_memory, measures.planned_memory),
            ];
            for (family, bytes) in memory {
                if let Some(bytes) = bytes {
                    family.with_label_values(&id).set(whole(bytes));
                }
            }
            if let Some(memory) = measures.gpu_memory {
                let free = memory.total.saturating_sub(memory.used);
                for (state, bytes) in [("used", memory.used), ("free", free)] {
                    self.worker_gpu_memory.with_label_values(&[id[0].as_str(), state]).set(whole(bytes));
                }
            }
        }
        let pruned = &workers.pruned;
        let share = |family: &GaugeVec, part: f64, whole: u64| {
            if whole > 0 {
                family.with_label_values::<&str>(&[]).set(part / whole as f64);
            }
        };
        share(&self.sparsity, pruned.zeros as f64, pruned.weights);
        share(&self.error, pruned.error_billionths as f64 / 1e9, pruned.measured);
    }
}

/// Sets the number of things in each state.
fn set(family: &IntGaugeVec, states: &[(&str, usize)]) {
    for (state, count) in states {
        family.with_label_values(&[*state]).set(*count as i64);
    }
}

fn whole(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

fn raise(counter: &IntCounter, to: u64) {
    counter.inc_by(to.saturating_sub(counter.get()));
}

fn raise_time(counter: &Counter, to: Duration) {
    counter.inc_by((to.as_secs_f64() - counter.get()).max(0.0));
}

fn ending_name(ending: &Ending) -> &'static str {
    match ending {
        Ending::Done => "done",
        Ending::Cancelled => "cancelled",
        Ending::Failed(_) => "failed",
    }
}
