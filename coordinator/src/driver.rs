//! The task that owns the core.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use obsdiff_core::{
    Action, Core, Event, Exponents, Failure, Input, InvalidJob, Job, Manifest, Outcome, Phase, TICK, View,
};
use obsdiff_proto::{PackageId, WorkerId};
use tokio::sync::mpsc::{Receiver, UnboundedReceiver, UnboundedSender, channel, unbounded_channel};
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::clock::Clock;
use crate::history::{History, MeasuredCourse};
use crate::{Downlink, Handle, INBOX, Message, Observer, Records, RendezvousService};

/// Feeds the core and carries out its actions.
pub struct CoreDriver<'a> {
    core: Core,
    clock: Clock,
    observer: Box<dyn Observer + Send + 'a>,
    history: History,
    inbox: Receiver<Message>,
    sessions: BTreeMap<WorkerId, Box<dyn Downlink>>,
    /// The last name given to a worker.
    latest: WorkerId,
    writes: UnboundedSender<Write>,
    /// Packages whose figures are to be read.
    committed: UnboundedSender<PackageId>,
    /// Both present until the driver runs.
    records: Option<(RecordWriter, FiguresReader)>,
    rendezvous: Arc<RendezvousService>,
    outcome: Option<Outcome>,
    /// Whether the job's store could be read when it was last looked at.
    store: Result<(), String>,
}

/// How long a stopped driver waits for a write that is in progress.
const FINISH: Duration = Duration::from_secs(5);

/// How often the driver checks whether another coordinator has taken over the job.
const LOOK: Duration = Duration::from_secs(10);

/// A tick that comes so late means that this process, or its machine, stood still.
const STOOD_STILL: Duration = Duration::from_secs(2);

/// A record to write to the job's store.
enum Write {
    Commit(Arc<Manifest>),
    Save(Arc<Exponents>),
    SaveHardware(String),
    /// Saved sums are of no use any more.
    ForgetSums,
    /// Nothing follows.
    End,
}

impl<'a> CoreDriver<'a> {
    /// A driver of a job, and the handle by which it is reached. Manifests and exponents are written to `records`.
    ///
    /// # Errors
    /// When the job makes no sense.
    pub fn new(
        job: Job,
        records: Box<dyn Records>,
        clock: Clock,
        observer: Box<dyn Observer + Send + 'a>,
    ) -> Result<(Self, Handle), InvalidJob> {
        let latest = WorkerId(u64::from(job.life) << 32);
        let core = Core::new(job, clock())?;
        let (sender, inbox) = channel(INBOX);
        let handle = Handle(sender);
        let (writes, to_write) = unbounded_channel();
        let (committed, to_read) = unbounded_channel();
        for package in (0..core.committed()).map(PackageId) {
            // The reader is there.
            let _ = committed.send(package);
        }
        let records: Arc<dyn Records> = records.into();
        let reader = FiguresReader { records: records.clone(), committed: to_read, answers: handle.clone() };
        let writer = RecordWriter { records, writes: to_write, answers: handle.clone() };
        let driver = Self {
            core,
            clock,
            observer,
            history: History::default(),
            inbox,
            sessions: BTreeMap::new(),
            latest,
            writes,
            committed,
            records: Some((writer, reader)),
            rendezvous: Arc::default(),
            outcome: None,
            store: Ok(()),
        };
        Ok((driver, handle))
    }

    /// Where the members of the open group find each other.
    pub fn rendezvous(&self) -> Arc<RendezvousService> {
        self.rendezvous.clone()
    }

    /// Runs until the job is over or the driver is stopped. It first finishes a manifest that it is writing.
    pub async fn run(&mut self) -> Option<Outcome> {
        let (writer, reader) = self.records.take()?;
        let mut writing = pin!(writer.run());
        let outcome = tokio::select! {
            biased;
            outcome = self.drive() => outcome,
            () = &mut writing => None,
            () = reader.run() => None,
        };
        if outcome.is_none() {
            self.write(Write::End);
            if timeout(FINISH, writing).await.is_err() {
                tracing::warn!("the store is slow: what was being written may be lost");
            }
        }
        outcome
    }

    async fn drive(&mut self) -> Option<Outcome> {
        let mut tick = (self.clock)();
        self.history.step(tick, &self.core);
        self.observer.step(&self.core);
        while self.outcome.is_none() {
            let now = (self.clock)();
            if let Some(late) = now.checked_sub(tick) {
                if late >= STOOD_STILL {
                    self.step(Input::Resumed { pause: late });
                }
                tick = now + TICK;
                self.step(Input::Tick);
                continue;
            }
            match timeout(tick - now, self.inbox.recv()).await {
                Ok(None | Some(Message::Stop)) => return None,
                Ok(Some(message)) => self.take(message),
                Err(_) => {}
            }
        }
        self.outcome.clone()
    }

    /// For this time, or until it is stopped, dismisses each worker that still connects, because the job is over.
    pub async fn linger(&mut self, most: Duration) {
        let end = (self.clock)() + most;
        while let Some(left) = end.checked_sub((self.clock)()) {
            match timeout(left, self.inbox.recv()).await {
                Ok(None | Some(Message::Stop)) | Err(_) => return,
                Ok(Some(message)) => self.take(message),
            }
        }
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Join(hello, downlink) => {
                self.latest = WorkerId(self.latest.0 + 1);
                let worker = self.latest;
                // A worker that stands by, or that comes when the job is over, gets no welcome, because it would begin to prepare.
                if self.outcome.is_none() && self.core.other_hardware(&hello.hardware).is_none() {
                    downlink.welcome(worker);
                }
                self.sessions.insert(worker, downlink);
                self.history.joined(worker, hello.instance);
                self.observer.joined(worker, &hello);
                self.step(Input::Joined { worker, hello });
            }
            Message::Input(input) => {
                match &input {
                    Input::Left { worker, .. } => {
                        self.sessions.remove(worker);
                        self.rendezvous.leave(*worker);
                    }
                    Input::Reported { worker, status } => {
                        self.history.reported((self.clock)(), *worker, &status.measures);
                        self.observer.reported(*worker, status);
                    }
                    _ => {}
                }
                self.step(input);
            }
            // The caller may have stopped waiting.
            Message::View(reply) => drop(reply.send(self.view())),
            Message::Readiness(reply) => drop(reply.send(self.readiness())),
            Message::Store(store) => self.store = store,
            Message::Pruned(linears) => self.history.pruned(linears),
            Message::Details(reply) => {
                drop(reply.send((self.view(), self.history.details(&self.core))));
            }
            Message::Superseded(life) => {
                self.outcome = Some(Outcome::Failed(Failure::Superseded { life }));
            }
            Message::Stop => {}
        }
    }

    /// The core's view. That another coordinator has taken over, only the driver knows.
    pub fn view(&self) -> View {
        let mut view = self.core.view();
        if let Some(outcome) = &self.outcome {
            view.phase = Phase::Over;
            view.ending = Some(outcome.into());
        }
        view
    }

    /// How the job has gone so far.
    pub fn course(&self) -> &MeasuredCourse {
        self.history.course()
    }

    /// Whether workers can join, and if not, why.
    fn readiness(&self) -> Result<(), String> {
        if let Some(outcome) = &self.outcome {
            return Err(format!("the job is over: {outcome}"));
        }
        self.store.clone().map_err(|error| format!("the job's store cannot be read: {error}"))
    }

    fn step(&mut self, input: Input) {
        let now = (self.clock)();
        let actions = self.core.step(now, input);
        self.history.step(now, &self.core);
        self.observer.step(&self.core);
        self.rendezvous.hold(self.core.group());
        for action in actions {
            self.act(action);
        }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Send { worker, command } => {
                if let Some(session) = self.sessions.get(&worker) {
                    session.command(command);
                }
            }
            Action::Dismiss { worker, why } => {
                self.rendezvous.leave(worker);
                self.history.dismissed(worker);
                if let Some(session) = self.sessions.remove(&worker) {
                    session.dismiss(why);
                }
            }
            Action::Commit(manifest) => {
                self.history.commits(&manifest);
                self.write(Write::Commit(manifest));
            }
            Action::Save(exponents) => self.write(Write::Save(exponents)),
            Action::SaveHardware(hardware) => self.write(Write::SaveHardware(hardware)),
            Action::ForgetSums => self.write(Write::ForgetSums),
            Action::Emit(event) => {
                self.history.event((self.clock)(), &event);
                if let Event::Committed { package } = &event {
                    // The reader ends with the driver.
                    let _ = self.committed.send(*package);
                }
                self.observer.event(&event);
            }
            Action::Finish(outcome) => self.outcome = Some(outcome),
        }
    }

    fn write(&self, write: Write) {
        // The writer never ends before the driver.
        let _ = self.writes.send(write);
    }
}

/// Reads what became of the linears of committed packages.
struct FiguresReader {
    records: Arc<dyn Records>,
    committed: UnboundedReceiver<PackageId>,
    answers: Handle,
}

impl FiguresReader {
    /// Reads until it is dropped. What cannot be read is not shown.
    async fn run(mut self) {
        while let Some(package) = self.committed.recv().await {
            match self.records.linear_figures(package).await {
                Ok(linears) if linears.is_empty() => {}
                Ok(linears) => self.answers.send(Message::Pruned(linears)).await,
                Err(error) => tracing::debug!(%package, %error, "the figures of a package are not known"),
            }
        }
        std::future::pending().await
    }
}

/// Writes records one after another in a task of its own, so that a slow store does not hold up the core.
struct RecordWriter {
    records: Arc<dyn Records>,
    writes: UnboundedReceiver<Write>,
    answers: Handle,
}

impl RecordWriter {
    /// Writes until it receives the end mark or another coordinator has taken over the job. The older of two coordinators stops writing.
    async fn run(mut self) {
        let mut looks = interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut store = Ok(());
        loop {
            let write = tokio::select! {
                biased;
                write = self.writes.recv() => match write {
                    None | Some(Write::End) => return,
                    write => write,
                },
                _ = looks.tick() => None,
            };
            let looked = self.records.successor().await;
            if let Ok(Some(life)) = looked {
                self.answers.send(Message::Superseded(life)).await;
                return std::future::pending().await;
            }
            let found = looked.map(|_| ());
            if found != store {
                if let Err(error) = &found {
                    // The core reports a store that fails when it holds up the job.
                    tracing::debug!(%error, "the lives of the job are not known");
                }
                self.answers.send(Message::Store(found.clone())).await;
                store = found;
            }
            if let Some(write) = write {
                self.write(write).await;
            }
        }
    }

    async fn write(&self, write: Write) {
        match write {
            Write::Commit(manifest) => {
                let package = manifest.package;
                let input = match self.records.commit(&manifest).await {
                    Ok(()) => Input::Committed { package },
                    Err(error) => Input::CommitFailed { package, error },
                };
                self.answers.send(Message::Input(input)).await;
            }
            Write::SaveHardware(hardware) => {
                if let Err(error) = self.records.save_hardware(&hardware).await {
                    // Manifests hold it as well.
                    tracing::warn!(%error, "the kind of hardware was not saved");
                }
            }
            Write::ForgetSums => {
                if let Err(error) = self.records.forget_sums().await {
                    // They go with the job's state.
                    tracing::warn!(%error, "saved sums that nobody needs any more were not removed");
                }
            }
            Write::Save(exponents) => {
                if let Err(error) = self.records.save(&exponents).await {
                    // Manifests hold them as well, and a pilot run would find them again.
                    tracing::warn!(%error, "exponents were not saved");
                }
            }
            Write::End => {}
        }
    }
}
