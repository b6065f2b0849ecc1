use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use obsdiff_core::{Exponents, Failure, Job, Options, Outcome};
use obsdiff_proto::message::Manifest;
use obsdiff_proto::{
    Inventory, Linear, LinearId, LinearTarget, Measures, MemoryExcess, Package, PackageId, Plan, Shard,
    ShardId, Site, SiteId, StreamId, Target,
};

use super::*;

/// A package of one site of one linear, gathered over one shard.
fn job() -> Job {
    let name = || "l".to_owned();
    let linear = LinearId(0);
    let site =
        Site { name: name(), width: 4, stream: StreamId(0), joined: Vec::new(), linears: vec![linear] };
    let package = Package {
        id: PackageId(0),
        units: 0..0,
        sites: vec![SiteId(0)],
        linears: vec![LinearTarget { linear, target: Target::NToM { n: 2, m: 4 } }],
        survey: false,
    };
    Job {
        inventory: Arc::new(Inventory {
            sites: vec![site],
            linears: vec![Linear { name: name(), rows: 8, bias: true, site: SiteId(0) }],
            ..Inventory::default()
        }),
        plan: Arc::new(Plan {
            packages: vec![package],
            shards: vec![Shard { id: ShardId(0), prompts: 0..4 }],
            budget: None,
        }),
        committed: 0,
        exponents: None,
        hardware: None,
        saved: Vec::new(),
        life: 0,
        options: Options::default(),
    }
}

/// Records to which nothing is to be written.
struct NoRecords {
    /// The life of a later coordinator, where there is one.
    successor: Result<Option<u32>, String>,
}

#[tonic::async_trait]
impl Records for NoRecords {
    async fn commit(&self, _: &Manifest) -> Result<(), String> {
        panic!("a package is committed")
    }

    async fn save(&self, _: &Exponents) -> Result<(), String> {
        panic!("exponents are saved")
    }

    async fn save_hardware(&self, _: &str) -> Result<(), String> {
        panic!("the kind of hardware is saved")
    }

    async fn successor(&self) -> Result<Option<u32>, String> {
        self.successor.clone()
    }
}

fn driver(successor: Result<Option<u32>, String>) -> (CoreDriver<'static>, Handle) {
    driver_of(job(), successor)
}

fn driver_of(job: Job, successor: Result<Option<u32>, String>) -> (CoreDriver<'static>, Handle) {
    CoreDriver::new(job, Box::new(NoRecords { successor }), clock::monotonic(), Box::new(())).unwrap()
}

#[tokio::test]
async fn of_two_coordinators_the_older_one_stops_and_writes_nothing_more() {
    let (mut driver, _handle) = driver(Ok(Some(7)));
    assert_eq!(driver.run().await, Some(Outcome::Failed(Failure::Superseded { life: 7 })));
}

#[tokio::test]
async fn workers_may_join_until_the_job_is_over_and_while_its_store_can_be_read() {
    let (mut open, handle) = driver(Ok(None));
    let (ended, ready) = tokio::join!(open.run(), async {
        let ready = handle.readiness().await;
        handle.cancel().await;
        ready
    });
    assert_eq!((ended, ready), (Some(Outcome::Cancelled), Some(Ok(()))));
    let (_, over) = tokio::join!(open.linger(Duration::from_secs(60)), async {
        let over = handle.readiness().await;
        handle.send(Message::Stop).await;
        over
    });
    assert_eq!(over, Some(Err("the job is over: cancelled".to_owned())));
    drop(open);
    assert_eq!(handle.readiness().await, None);

    let (mut unread, handle) = driver(Err("no route to host".to_owned()));
    let (_, reported) = tokio::join!(unread.run(), async {
        // The store is asked for the first time right after the start.
        let reported = loop {
            match handle.readiness().await {
                Some(Ok(())) => tokio::task::yield_now().await,
                reported => break reported,
            }
        };
        handle.send(Message::Stop).await;
        reported
    });
    assert_eq!(reported, Some(Err("the job's store cannot be read: no route to host".to_owned())));
}

/// Workers and watchers that send more than the coordinator can take in wait for it.
#[tokio::test]
async fn the_inbox_is_bounded_and_what_waited_is_taken_in_later() {
    let (mut driver, handle) = driver(Ok(None));
    let left = || Message::left(WorkerId(7), "the connection was lost");
    (0..INBOX).for_each(|_| handle.0.try_send(left()).unwrap());
    assert!(handle.0.try_send(left()).is_err(), "more than {INBOX} messages wait");
    let stopping = thread::spawn(move || handle.stop());
    assert_eq!(driver.run().await, None);
    stopping.join().unwrap();
}

/// Writes down what a session is told.
struct Told(Arc<Mutex<Vec<String>>>);

impl Downlink for Told {
    fn welcome(&self, _: WorkerId) {
        self.0.lock().unwrap().push("welcome".to_owned());
    }

    fn command(&self, _: Command) {
        self.0.lock().unwrap().push("a command".to_owned());
    }

    fn dismiss(&self, why: Dismissal) {
        self.0.lock().unwrap().push(why.to_string());
    }
}

/// A worker that looks for the job's coordinator, and what it is told.
fn late_worker() -> (Message, Arc<Mutex<Vec<String>>>) {
    let told = Arc::default();
    let hello = Hello {
        instance: 1,
        speed: 1,
        hardware: "a processor".to_owned(),
        exponents: Exponents::default(),
        status: Status::default(),
    };
    (Message::join(hello, Box::new(Told(Arc::clone(&told)))), told)
}

/// It would begin to prepare if it were welcomed.
#[tokio::test]
async fn a_worker_that_comes_late_is_only_told_that_the_job_is_over() {
    let (mut over, handle) = driver(Ok(None));
    let (outcome, ()) = tokio::join!(over.run(), handle.cancel());
    assert_eq!(outcome, Some(Outcome::Cancelled));
    let (worker, told) = late_worker();
    handle.send(worker).await;
    handle.send(Message::Stop).await;
    over.linger(Duration::from_secs(60)).await;
    assert_eq!(*told.lock().unwrap(), ["the job is over: cancelled"]);

    let (done, handle) = DoneJob::new(clock::monotonic());
    let (worker, told) = late_worker();
    handle.send(worker).await;
    let (readiness, ()) = tokio::join!(
        async {
            let readiness = handle.readiness().await;
            handle.send(Message::Stop).await;
            readiness
        },
        done.linger(Duration::from_secs(60))
    );
    assert_eq!((readiness, &*told.lock().unwrap()), (None, &vec!["the job is over: done".to_owned()]));
}

/// One that stands by comes again every few seconds, each time by another name.
#[tokio::test]
async fn a_worker_that_was_sent_away_is_forgotten() {
    let other = Job { hardware: Some("another processor".to_owned()), ..job() };
    let (mut driver, handle) = driver_of(other, Ok(None));
    let (worker, told) = late_worker();
    handle.send(worker).await;
    let opening_excess = Some(MemoryExcess { taken: 2 << 20, planned: 1 << 20 });
    let measures = Measures { opening_excess, ..Measures::default() };
    handle.send(Message::report(WorkerId(1), Status { measures, ..Status::default() })).await;
    let (outcome, ()) = tokio::join!(driver.run(), handle.cancel());
    assert_eq!(outcome, Some(Outcome::Cancelled));
    let told = told.lock().unwrap();
    assert!(told.len() == 1 && told[0].contains("another processor"), "{told:?}");
    let words = driver.course().faults.iter().map(|fault| &fault.words);
    assert_eq!(words.filter(|words| words.contains("opening its GPU")).count(), 0);
}
