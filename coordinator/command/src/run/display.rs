//! Progress of a job: the core says which phase it is in. How far that is, workers of this process say themselves; of others the core
//! knows by shards and parts.

use std::sync::Arc;
use std::sync::Mutex;

use obsdiff_coordinator::{Observer, Outlook};
use obsdiff_core::{Core, Event, Phase};
use obsdiff_proto::message::Hello;
use obsdiff_proto::{Package, PackageId, Shard, WorkerId, counted, lock};
use obsdiff_worker::device::Watch;
use tokio::sync::{broadcast, watch};

use super::Inputs;
use crate::progress::{self, Progress, WorkKind};

/// The bar or line of the open phase, which workers move.
#[derive(Default)]
pub struct PhaseDisplay {
    open: Mutex<Option<OpenPhase>>,
    /// What a survey expects, which is the same for every worker.
    expected: Mutex<Option<f64>>,
}

struct OpenPhase {
    counts: Counts,
    phase: progress::PhaseProgress,
}

#[derive(Clone, Copy, PartialEq)]
enum Counts {
    Steps,
    Solved,
    Applied,
}

impl PhaseDisplay {
    fn replace(&self, next: Option<OpenPhase>) {
        let last = std::mem::replace(&mut *lock(&self.open), next);
        // Loading is shown while it lasts: it is no work of the job.
        if let Some(last) = last.filter(|last| last.counts != Counts::Applied) {
            last.phase.finish();
        }
    }

    fn advance(&self, counts: Counts, by: u64) {
        let open = lock(&self.open);
        if let Some(open) = open.as_ref().filter(|open| open.counts == counts) {
            open.phase.advance(by);
        }
    }

    /// So much of what the open phase counts is done.
    fn reach(&self, counts: Counts, share: f64) {
        let open = lock(&self.open);
        if let Some(open) = open.as_ref().filter(|open| open.counts == counts) {
            open.phase.reach(share);
        }
    }

    /// The same where no work has changed it: sums were lost, or a worker brings them.
    fn correct(&self, counts: Counts, share: f64) {
        let open = lock(&self.open);
        if let Some(open) = open.as_ref().filter(|open| open.counts == counts) {
            open.phase.correct(share);
        }
    }

    /// Tells how far the open phase is, where that is due.
    fn tell_if_due(&self) {
        if let Some(open) = &*lock(&self.open) {
            open.phase.tell_if_due();
        }
    }

    /// Drops the open phase: it failed.
    pub(super) fn give_up(&self) {
        *lock(&self.open) = None;
    }
}

impl Watch for PhaseDisplay {
    fn steps(&self, prompts: u64) {
        self.advance(Counts::Steps, prompts);
    }

    fn solved(&self, count: u64) {
        self.advance(Counts::Solved, count);
    }

    fn expected(&self, velocity_error: f64) {
        *lock(&self.expected) = Some(velocity_error);
    }
}

/// Shows a job's phases.
pub struct Display<'a> {
    inputs: &'a Inputs,
    /// Denoising steps of a prompt.
    steps: u64,
    progress: &'a Progress,
    phase_display: Arc<PhaseDisplay>,
    package: Option<PackageId>,
    phase: Option<Phase>,
    /// The share of the package's shards that were in sums at the last step.
    held: f64,
    /// Whether the next step takes in a worker that brings sums.
    brings_sums: bool,
    /// Whether saved sums are being restored, of which nobody else knows either.
    restoring: bool,
    /// Whether it is said what a survey expects.
    expectation_said: bool,
    /// Those who watch from elsewhere, where the workers are elsewhere too.
    watchers: Option<broadcast::Sender<String>>,
    /// How far the job is, for those who show or announce it.
    outlook: Option<watch::Sender<Outlook>>,
}

impl<'a> Display<'a> {
    /// A display of a job of `steps` denoising steps on `progress`, whose bars `phase_display` moves.
    pub fn new(
        inputs: &'a Inputs,
        steps: u64,
        progress: &'a Progress,
        phase_display: Arc<PhaseDisplay>,
    ) -> Self {
        Self {
            inputs,
            steps,
            progress,
            phase_display,
            package: None,
            phase: None,
            held: 0.0,
            brings_sums: false,
            restoring: false,
            expectation_said: false,
            watchers: None,
            outlook: None,
        }
    }

    /// The same for workers elsewhere: it passes on what happens to those who watch from there.
    pub fn with_watchers(self, watchers: broadcast::Sender<String>) -> Self {
        Self { watchers: Some(watchers), ..self }
    }

    /// The same, which reports how far the job is.
    pub fn with_outlook(self, outlook: watch::Sender<Outlook>) -> Self {
        Self { outlook: Some(outlook), ..self }
    }

    fn open(&self, name: &'static str, counts: Counts, total: u64) {
        let unit = match counts {
            Counts::Steps if self.inputs.kept.is_some() => "Grams",
            Counts::Steps => "prompt steps",
            Counts::Solved if self.package().is_some_and(Package::is_structured) => "structures",
            Counts::Solved => "linears",
            Counts::Applied => "packages",
        };
        let phase = || match (name, counts) {
            ("pilot", _) => self.progress.phase(name, unit, total),
            (_, Counts::Steps) => self.progress.work(WorkKind::Calibrate, name, unit, total),
            (_, Counts::Solved) => self.progress.work(WorkKind::Solve, name, unit, total),
            (_, Counts::Applied) => self.progress.phase(name, unit, total),
        };
        let open = (total > 0).then(|| OpenPhase { counts, phase: phase() });
        self.phase_display.replace(open);
    }

    fn steps_of<'s>(&self, shards: impl IntoIterator<Item = &'s Shard>) -> u64 {
        shards.into_iter().map(|shard| shard.prompts.len() as u64 * self.steps).sum()
    }

    /// Linears or structures that a package prunes.
    fn solved(&self, package: &Package) -> u64 {
        if !package.is_structured() {
            return package.linears.len() as u64;
        }
        self.inputs.described.inventory.structures_of(package).count() as u64
    }

    /// Moves the bar by what the core knows, where nobody else does. Nobody else knows of sums that are `found`, or lost.
    fn reach(&mut self, core: &Core, found: bool) {
        if let (Some(Phase::Apply), Some(open)) = (self.phase, self.package) {
            let applied = core.view().workers.iter().map(|worker| worker.applied).max().unwrap_or(0);
            self.phase_display.reach(Counts::Applied, f64::from(applied) / f64::from(open.0.max(1)));
        }
        let elsewhere = self.watchers.is_some();
        if self.phase == Some(Phase::Pilot) {
            if elsewhere && core.package().is_some() {
                self.phase_display.reach(Counts::Steps, 1.0);
            }
            return;
        }
        // The next package has counts of its own.
        if core.package() != self.package {
            return;
        }
        let (held, solved) = core.progress();
        let lost = held < self.held;
        self.held = held;
        if found || lost {
            self.phase_display.correct(Counts::Steps, held);
        }
        if found {
            self.phase_display.correct(Counts::Solved, solved);
        }
        if elsewhere {
            self.phase_display.reach(Counts::Steps, held);
            self.phase_display.reach(Counts::Solved, solved);
        }
    }

    fn outlook_of(&self, core: &Core) -> Outlook {
        let committed = core.committed();
        let open = core.package().map(|open| (open.0 as usize, core.progress()));
        Outlook {
            end: self.progress.expected_end(),
            done: self.progress.share_done(committed as usize, open),
            committed,
            packages: self.inputs.plan.packages.len() as u32,
        }
    }

    fn package(&self) -> Option<&Package> {
        self.inputs.plan.packages.get(self.package?.0 as usize)
    }

    fn show_package(&mut self, open: PackageId) {
        self.phase_display.replace(None);
        self.package = Some(open);
        self.held = 0.0;
        let packages = self.inputs.plan.packages.len();
        if let Some(package) = self.package() {
            let solved = self.solved(package);
            let of = |thing: &str| counted(solved as usize, thing);
            let what = match (package.is_structured(), package.survey) {
                (true, true) => format!("{}, on the source to divide the budget", of("structure")),
                (true, false) => of("structure"),
                (false, true) => {
                    format!("{}, on the source to find what pruning each costs", of("linear"))
                }
                (false, false) => format!("{}, {}", counted(package.units.len(), "unit"), of("linear")),
            };
            self.progress.package(open.0 as usize + 1, packages, &what);
        }
    }

    fn show_phase(&self, phase: Phase) {
        let shards = &self.inputs.plan.shards;
        match phase {
            // Kept Grams say by which exponents they were gathered, and are read in place of calibration.
            Phase::Pilot if self.inputs.kept.is_some() => self.phase_display.replace(None),
            Phase::Calibrate if self.inputs.kept.is_some() => {
                self.open("read Grams", Counts::Steps, self.package().map_or(0, |p| p.sites.len() as u64));
            }
            // It goes by the sums of its survey.
            Phase::Calibrate if self.package.is_some_and(|package| self.inputs.plan.keeps_sums(package)) => {
                self.phase_display.replace(None);
            }
            Phase::Pilot => self.open("pilot", Counts::Steps, self.steps_of(shards.first())),
            Phase::Calibrate => self.open("calibrate", Counts::Steps, self.steps_of(shards)),
            // A part is solved as soon as its Gram has arrived, while others are still on their way.
            Phase::Solve | Phase::Reduce => {
                let name =
                    if self.package().is_some_and(|package| package.survey) { "survey" } else { "solve" };
                self.open(name, Counts::Solved, self.package().map_or(0, |package| self.solved(package)));
            }
            Phase::Export => {
                self.phase_display.replace(None);
                self.progress.packages_done();
            }
            Phase::Apply => {
                let finished = self.package.map_or(0, |open| u64::from(open.0));
                self.open("load finished packages", Counts::Applied, finished);
            }
            Phase::Commit | Phase::Over => self.phase_display.replace(None),
        }
    }
}

impl Observer for Display<'_> {
    fn event(&mut self, event: &Event) {
        if let Some(watchers) = &self.watchers {
            // Where nobody watches, nobody hears.
            let _ = watchers.send(event.to_string());
        }
        match event {
            Event::Lowered { site, exponent, .. } => {
                let site = &self.inputs.described.inventory.site(*site).name;
                self.progress.note(&format!(
                    "the Gram of {site} overflowed: the package is run again at exponent {exponent}"
                ));
            }
            Event::Restores { .. } => {
                self.restoring = true;
                self.progress.note(&event.to_string());
            }
            Event::StandingBy { .. }
            | Event::Unrestored { .. }
            | Event::Left { .. }
            | Event::Discarded { .. }
            | Event::Broken { .. }
            | Event::Retried { .. } => {
                self.progress.note(&event.to_string());
            }
            Event::Committed { package } => {
                self.progress.committed(package.0 as usize + 1);
                tracing::info!("{event}");
            }
            // Workers of this process come and go with it.
            Event::Joined { .. } | Event::Preparing { .. } | Event::Encodes { .. } | Event::Ready { .. }
                if self.watchers.is_some() =>
            {
                self.progress.event(&event.to_string());
            }
            Event::Joined { .. }
            | Event::Preparing { .. }
            | Event::Encodes { .. }
            | Event::Ready { .. }
            | Event::Saved { .. }
            | Event::Grouped { .. }
            | Event::Formed { .. }
            | Event::Arrived { .. } => {
                tracing::info!("{event}");
            }
        }
    }

    fn joined(&mut self, _: WorkerId, hello: &Hello) {
        self.brings_sums = !hello.status.sums.held.is_empty();
    }

    fn step(&mut self, core: &Core) {
        let expected = *lock(&self.phase_display.expected);
        if let Some(error) = expected.filter(|_| !self.expectation_said) {
            self.progress
                .note(&format!("the velocity is expected to differ from the source's by {error:.4}"));
            self.expectation_said = true;
        }
        // What ends a phase is a part of it.
        let restored = self.restoring && !core.is_restoring();
        self.restoring &= !restored;
        let found = std::mem::take(&mut self.brings_sums) || restored;
        self.reach(core, found);
        let package = core.package();
        let phase = match core.phase() {
            Phase::Reduce => Phase::Solve,
            phase => phase,
        };
        if let Some(open) = package.filter(|open| self.package != Some(*open)) {
            self.show_package(open);
            self.phase = None;
        }
        // What is there already is no work of the phase.
        let opened = self.phase != Some(phase);
        if opened {
            self.show_phase(phase);
            self.phase = Some(phase);
        }
        self.reach(core, opened);
        self.phase_display.tell_if_due();
        if let Some(sender) = &self.outlook {
            let outlook = self.outlook_of(core);
            sender.send_if_modified(|last| std::mem::replace(last, outlook) != outlook);
        }
    }
}
