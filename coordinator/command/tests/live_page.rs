//! The coordinator's page, as Chromium shows it while a job runs from its start to its end, and who may see it.
#![cfg(feature = "gloo")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use obsdiff_tests::not_tested;

mod access;
mod chromium;
mod keyboard;
mod process;

use chromium::{Browser, chromium};
use process::{Coordinator, setting, worker};

/// The text of an element of the page.
fn text(id: &str) -> String {
    format!("document.getElementById('{id}').innerText")
}

#[test]
fn a_browser_shows_a_run_from_its_start_to_its_end_with_what_goes_wrong() {
    let Some(name) = chromium() else {
        not_tested("how the live page looks needs Chromium (Debian's chromium)");
        return;
    };
    let (folder, own) = (setting(24), tempfile::tempdir().unwrap());
    let coordinator = Coordinator::start(folder.path());
    let url = coordinator.url.clone();
    let mut browser = Browser::start(name, own.path());
    browser.open(&url);
    browser.until("document.title === '0 of 2, pilot: shapes-sd3, obsdiff'");
    assert_eq!(browser.value(&text("workers-words")), "No worker is connected.");
    assert_eq!(browser.value(&text("line")), "pilot: 0 of 2 packages committed");

    // The coordinator is killed: the page says so, and goes on with the next one by itself.
    let mut coordinator = coordinator.replace(folder.path());
    browser.until(&format!("{}.startsWith('The connection to the coordinator is lost.')", text("banner")));
    let watch = coordinator.line(|line| line.starts_with("watch it at ")).unwrap();
    assert_eq!(watch, format!("watch it at {url}/"));
    browser.until("document.getElementById('banner').hidden");

    let [mut one, mut other] = [(); 2].map(|()| worker(folder.path(), &url));
    browser.until("document.getElementById('workers-rows').rows.length === 2");
    // Their names are those of the coordinator's second start.
    let first = "document.getElementById('workers-rows').rows[0].cells[0].textContent";
    assert_eq!(browser.value(first), "2.1");
    browser.until("document.querySelectorAll('#shards-cells .done').length > 0");
    let cells = browser.value("document.querySelectorAll('#shards-cells li').length");
    assert_eq!(cells, 6);
    // Whichever of both workers is done first.
    let spoken = browser.value("document.querySelector('#shards-cells .done').innerText");
    let spoken = spoken.as_str().unwrap().to_owned();
    assert!((1..=6).any(|shard| spoken == format!("shard {shard}: done")), "{spoken}");

    other.kill();
    browser.until(&format!("/Fault: worker 2\\.\\d left/.test({})", text("events")));
    browser.until("/lost at .+: the connection/.test(document.getElementById('workers-rows').innerText)");

    let banner = text("banner");
    browser.until(&format!("{banner}.startsWith('The job is ')"));
    assert_eq!(browser.value(&banner), "The job is done. The pruned pipeline is in out.");
    assert!(coordinator.end().success() && one.end().success());
    // Its coordinator is gone, and the page keeps the end.
    assert_eq!(browser.value(&banner), "The job is done. The pruned pipeline is in out.");
    let states = browser
        .value("[...document.getElementById('packages-rows').rows].map((row) => row.cells[1].innerText)");
    assert_eq!(states, serde_json::json!(["done", "done", "done", "done"]));
    let record: serde_json::Value =
        serde_json::from_slice(&std::fs::read(folder.path().join("out/pruning.json")).unwrap()).unwrap();
    let zeros: u64 = record["linears"].as_array().unwrap().iter().map(|l| l["zeros"].as_u64().unwrap()).sum();
    let shown = browser.value("[job.blocks.length, job.blocks.reduce((sum, block) => sum + block.zeros, 0)]");
    // Figures of the last package may not have been read when the job ended.
    assert!(shown[0].as_u64().unwrap() >= 3, "{shown}");
    assert!((1..=zeros).contains(&shown[1].as_u64().unwrap()), "{shown} of {zeros}");
    assert_eq!(browser.problems, Vec::<String>::new());

    for (width, dark) in [(1280, false), (1280, true), (360, false), (360, true)] {
        browser.look(width, dark);
        let facts = browser
            .value(&format!("(() => {{ {}; return readability(); }})()", include_str!("readability.js")));
        assert_eq!((&facts["width"], &facts["dark"]), (&width.into(), &dark.into()), "{facts}");
        assert!(facts["scrolled"].as_u64().unwrap() <= u64::from(width), "wider than its screen: {facts}");
        // What WCAG 2.2 asks of text, level AA.
        assert!(facts["contrast"].as_f64().unwrap() >= 4.5, "text that is hard to read: {facts}");
        assert_eq!(facts["headings"][0], 1);
        let picture = STANDARD.decode(browser.picture()).unwrap();
        let reader = png::Decoder::new(std::io::Cursor::new(picture)).read_info().unwrap();
        assert_eq!(reader.info().width, width);
    }
}
