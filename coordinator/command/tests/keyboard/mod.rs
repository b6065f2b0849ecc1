//! The coordinator's page by keyboard alone, and with as little motion as its user asks for.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use obsdiff_coordinator::page::{ReportSource, routes};
use obsdiff_proto::view::{
    Activity, BlockFigures, Grid, JobDetails, JobReport, JobRequest, PastEvent, Phase, PhaseTime, View,
    WorkerMemory, WorkerView,
};
use obsdiff_proto::{GpuMemory, PackageId, WorkerId, lock};
use obsdiff_tests::not_tested;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

use super::chromium::{Browser, chromium};

/// A job that stays as it is until the test changes it.
#[derive(Clone)]
struct Still(Arc<Mutex<JobReport>>);

impl ReportSource for Still {
    async fn report(&self) -> Option<JobReport> {
        Some(lock(&self.0).clone())
    }
}

/// A job of which there is more than a screen can show.
fn busy() -> JobReport {
    let worker = |id| WorkerView {
        worker: WorkerId(id),
        applied: 0,
        leased: 1,
        held: 2,
        pace: Some(Duration::from_secs(3)),
        draining: false,
        preparing: false,
        solving: 0,
        activity: Activity::Calibrates,
    };
    let gpu = Some(GpuMemory { used: 60 << 30, total: 80 << 30 });
    let memory = |id| WorkerMemory { worker: WorkerId(id), peak: Some(3 << 29), planned: Some(2 << 30), gpu };
    let event = |at| PastEvent {
        at: Duration::from_secs(at),
        fault: at % 7 == 3,
        words: format!("worker {at} is ready"),
    };
    let block = |i: u64| BlockFigures {
        name: format!("transformer_blocks.{i}"),
        weights: 1000,
        zeros: 10 * i,
        mean_error: Some(0.01),
    };
    let time = |phase, since: Option<u64>| PhaseTime {
        package: Some(PackageId(0)),
        phase,
        took: Duration::from_secs(20),
        since: since.map(Duration::from_secs),
    };
    let (mut shard_grid, mut part_grid) = (Grid::new(300), Grid::new(50));
    (0..40).for_each(|shard| shard_grid.count(shard, shard < 30));
    (0..5).for_each(|part| part_grid.count(part, true));
    JobReport {
        release: "0".to_owned(),
        model: "/models/a-model".to_owned(),
        output: "out".to_owned(),
        elapsed: Duration::from_secs(100),
        left: Some(Duration::from_secs(300)),
        request: JobRequest::default(),
        view: View {
            phase: Phase::Calibrate,
            packages: 30,
            surveys: 0,
            committed: 0,
            package: Some(PackageId(0)),
            shards: 300,
            held: 30,
            parts: 50,
            solved: 5,
            epoch: None,
            workers: (1..=60).map(worker).collect(),
            ending: None,
        },
        details: JobDetails {
            timeline: vec![time(Phase::Apply, None), time(Phase::Calibrate, Some(40))],
            shard_grid,
            part_grid,
            blocks: (0..40).map(block).collect(),
            memory: (1..=60).map(memory).collect(),
            workers_left: Vec::new(),
            events: (0..60).map(event).collect(),
        },
    }
}

/// Serves the page of this job until the runtime ends; gives its URL.
fn serve(runtime: &Runtime, job: Still) -> String {
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    runtime.spawn(async move {
        let page = routes(job);
        while let Ok((stream, _)) = listener.accept().await {
            let service = TowerToHyperService::new(page.clone());
            tokio::spawn(async move {
                // A browser that leaves ends it.
                let builder = auto::Builder::new(TokioExecutor::new());
                let _ = builder.serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
    url
}

/// A browser that shows this job.
fn shown(runtime: &Runtime, job: &Still, folder: &tempfile::TempDir) -> Option<Browser> {
    let Some(name) = chromium() else {
        not_tested("how the live page is used by keyboard needs Chromium (Debian's chromium)");
        return None;
    };
    let mut browser = Browser::start(name, folder.path());
    browser.look(1280, false);
    browser.open(&serve(runtime, job.clone()));
    browser.until("document.getElementById('workers-rows') && document.getElementById('workers-rows').rows.length === 60");
    Some(browser)
}

/// What has the focus: its id or, where it has none, that of the section around it; whether that is seen, and whether it is on the screen.
const FOCUS: &str = "(() => {
  const element = document.activeElement;
  const style = getComputedStyle(element);
  const box = element.getBoundingClientRect();
  const of = element.closest('section');
  return {
    name: element.id || (of && (of.id || of.getAttribute('aria-labelledby'))) || element.textContent,
    framed: element.matches(':focus-visible') && style.outlineStyle === 'solid' && parseFloat(style.outlineWidth) >= 2,
    onScreen: box.bottom > 0 && box.top < innerHeight && box.right > 0 && box.left < innerWidth,
    named: Boolean(element.textContent.trim() || element.getAttribute('aria-labelledby')),
  };
})()";

#[test]
fn every_part_of_the_page_is_reached_and_used_without_a_pointer() {
    let (runtime, folder) = (Runtime::new().unwrap(), tempfile::tempdir().unwrap());
    let job = Still(Arc::new(Mutex::new(busy())));
    let Some(mut browser) = shown(&runtime, &job, &folder) else { return };

    let mut stops = Vec::new();
    for _ in 0..8 {
        browser.key("Tab");
        let focus = browser.value(FOCUS);
        for fact in ["framed", "onScreen", "named"] {
            assert_eq!(focus[fact], true, "{fact}: {focus}");
        }
        stops.push(focus["name"].as_str().unwrap().to_owned());
    }
    let expected = [
        "Skip to the job",
        "packages",
        "workers",
        "shards-cells",
        "parts-cells",
        "blocks",
        "events-region",
        "this page as JSON",
    ];
    assert_eq!(stops, expected);
    // Whatever is cut off can be scrolled by who has no pointer.
    let unreached = browser.value(
        "[...document.querySelectorAll('body *')].filter((element) => {
          const style = getComputedStyle(element);
          const cut = element.scrollHeight > element.clientHeight + 1 && /auto|scroll/.test(style.overflowY);
          return cut && (element.tabIndex < 0 || !element.getAttribute('aria-labelledby'));
        }).map((element) => element.outerHTML.slice(0, 80))",
    );
    assert_eq!(unreached, json!([]));

    // A region scrolls by its keys, and stays where it is when the job goes on.
    browser.value("document.getElementById('workers').focus()");
    browser.key("End");
    browser.until("document.getElementById('workers').scrollTop > 0");
    lock(&job.0).view.held += 1;
    browser.until("job.shards_held === 31");
    let state = "[document.activeElement.id, document.getElementById('workers').scrollTop > 0]";
    assert_eq!(browser.value(state), json!(["workers", true]));

    // The arrow keys show of each shard what a pointer sees as its title.
    let reached = |browser: &mut Browser| {
        let words = browser.value("document.getElementById('shards-reached').textContent");
        let marked = "[...document.querySelectorAll('#shards-cells .reached')].map((cell) => cell.title)";
        (words.as_str().unwrap().to_owned(), browser.value(marked))
    };
    assert_eq!(reached(&mut browser), (String::new(), json!([])));
    browser.value("document.getElementById('shards-cells').focus()");
    let first = "shard 1: done. Arrow keys go to the others.".to_owned();
    assert_eq!(reached(&mut browser), (first, json!(["shard 1: done"])));
    for (key, words) in [
        ("ArrowRight", "shard 2: done"),
        ("ArrowLeft", "shard 1: done"),
        ("ArrowLeft", "shard 1: done"),
        ("End", "shard 300: to come"),
        ("ArrowRight", "shard 300: to come"),
        ("Home", "shard 1: done"),
    ] {
        browser.key(key);
        assert_eq!(reached(&mut browser).1, json!([words]), "{key}");
    }
    browser.key("ArrowDown");
    let below = reached(&mut browser).0;
    assert!(below.starts_with("shard ") && below != "shard 2: done. Arrow keys go to the others.", "{below}");
    browser.key("ArrowUp");
    assert_eq!(reached(&mut browser).1, json!(["shard 1: done"]));
    browser.key("Tab");
    assert_eq!(reached(&mut browser), (String::new(), json!([])));

    // The first link leads past the head of the page.
    browser.value("(document.activeElement.blur(), scrollTo(0, 0), document.querySelector('.skip').focus())");
    browser.key("Enter");
    browser.until("location.hash === '#main' && document.activeElement.id === 'main'");
    assert_eq!(browser.problems, Vec::<String>::new());
}

#[test]
fn nothing_moves_for_who_asks_for_less_motion() {
    let (runtime, folder) = (Runtime::new().unwrap(), tempfile::tempdir().unwrap());
    let job = Still(Arc::new(Mutex::new(busy())));
    let Some(mut browser) = shown(&runtime, &job, &folder) else { return };
    let moving = "[...document.querySelectorAll('*')].filter((element) => {
      const style = getComputedStyle(element);
      const lasts = style.transitionDuration.split(', ').some((time) => parseFloat(time) > 0);
      return lasts || style.animationName !== 'none' || style.scrollBehavior === 'smooth';
    }).length";
    browser.reduce_motion(false);
    assert_eq!(browser.value(moving), 1, "the bar that shows how far the job is");
    browser.reduce_motion(true);
    assert_eq!(browser.value(moving), 0);
}

#[test]
fn tiles_tell_the_rate_and_the_time_that_is_left_and_a_survey_shows_its_probes() {
    let (runtime, folder) = (Runtime::new().unwrap(), tempfile::tempdir().unwrap());
    let job = Still(Arc::new(Mutex::new(busy())));
    let Some(mut browser) = shown(&runtime, &job, &folder) else { return };
    let tile = |browser: &mut Browser, name: &str| {
        let tiles = "[...document.querySelectorAll('#tiles > div')]";
        let words = browser.value(&format!(
            "{tiles}.filter((tile) => tile.children[0].innerText === '{name}').map((tile) => tile.children[1].innerText)[0]"
        ));
        words.as_str().unwrap_or_else(|| panic!("no tile {name}")).to_owned()
    };
    // 60 workers, each of which takes three seconds for a shard.
    assert_eq!(tile(&mut browser, "shards a second"), "20.0");
    // The time goes on by itself: 300 seconds when the report was made.
    let left = tile(&mut browser, "time left, about");
    assert!(left == "5 min 0 s" || left.starts_with("4 min "), "{left}");
    browser.until(&format!("!document.getElementById('tiles').innerText.includes('{left}')"));
    assert_eq!(browser.value("document.getElementById('parts-heading').innerText"), "Parts");

    {
        let mut report = lock(&job.0);
        (report.view.surveys, report.view.phase) = (1, Phase::Solve);
        report.details.timeline.push(PhaseTime {
            package: Some(PackageId(0)),
            phase: Phase::Solve,
            took: Duration::ZERO,
            since: Some(Duration::from_secs(20)),
        });
    }
    browser.until("document.getElementById('parts-heading').innerText === 'Probes'");
    let words = browser.value("document.getElementById('parts-words').innerText");
    assert_eq!(words, "5 of 50 probes done, 0 being made, 45 to come.");
    let cells = "[...document.querySelectorAll('#parts-cells li')].map((cell) => cell.title)";
    let cells = browser.value(cells);
    assert_eq!(
        (cells.as_array().unwrap().len(), &cells[0], &cells[49]),
        (50, &json!("probe 1: done"), &json!("probe 50: to come"))
    );
    // Five in the 80 seconds since they began.
    let rate = tile(&mut browser, "probes a minute");
    assert!(rate.starts_with("3."), "{rate}");
    assert_eq!(browser.problems, Vec::<String>::new());
}

#[test]
fn memory_is_shown_beside_each_worker() {
    let (runtime, folder) = (Runtime::new().unwrap(), tempfile::tempdir().unwrap());
    let job = Still(Arc::new(Mutex::new(busy())));
    let Some(mut browser) = shown(&runtime, &job, &folder) else { return };
    let cells =
        "[...document.getElementById('workers-rows').rows[0].cells].slice(4).map((cell) => cell.innerText)";
    assert_eq!(browser.value(cells), json!(["1.5 of 2.0 GiB", "60.0 of 80.0 GiB"]));
    assert_eq!(browser.value("document.getElementById('gpu-memory').hidden"), false);
    // Without GPUs there is no column of them.
    lock(&job.0).details.memory.iter_mut().for_each(|memory| memory.gpu = None);
    browser.until("document.getElementById('gpu-memory').hidden");
    assert_eq!(browser.value(&format!("{cells}[1]")), "");
}
