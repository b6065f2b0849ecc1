//! The report as Chromium shows it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use obsdiff_tests::not_tested;
use serde_json::Value;

use crate::report::prune;
use crate::text;

/// Names that Chromium has on different systems.
const NAMES: [&str; 3] = ["chromium", "chromium-browser", "google-chrome"];

/// Measures the page it is in, tells the page around it, and sorts the table of linears by its third column.
const MEASURE: &str = concat!(
    "<script>",
    include_str!("../readability.js"),
    r#"
addEventListener("load", () => {
  const table = document.querySelector("table.sortable");
  const column = () => [...table.tBodies[0].rows].map((row) => Number(row.cells[3].dataset.value));
  table.tHead.rows[0].cells[3].querySelector("button").click();
  const ascending = column().every((value, i, all) => i === 0 || all[i - 1] <= value);
  const facts = {
    ...readability(), ascending,
    sorted: table.tHead.rows[0].cells[3].getAttribute("aria-sort"),
    broken: [...document.images].filter((image) => !image.naturalWidth).length,
    unnamed: [...document.images].filter((image) => !image.alt).length,
    landmarks: ["header", "nav", "main", "footer"].filter((name) => document.querySelectorAll(name).length === 1).length,
  };
  parent.postMessage(JSON.stringify(facts), "*");
});
</script>"#
);

/// A page that shows the one to be measured in a frame as wide as a screen, and what that told.
fn frame(width: u32) -> String {
    format!(
        "<!doctype html><pre id=\"facts\"></pre><script>addEventListener(\"message\", (e) => \
         {{ document.getElementById(\"facts\").textContent = e.data; }});</script>\
         <iframe src=\"measured.html\" style=\"border:0;width:{width}px;height:900px\"></iframe>"
    )
}

fn chromium() -> Option<&'static str> {
    NAMES
        .into_iter()
        .find(|name| Command::new(name).arg("--version").output().is_ok_and(|output| output.status.success()))
}

/// What Chromium writes of a page, and what it logs.
fn shown(name: &str, profile: &Path, page: &Path, dark: bool, args: &[String]) -> (String, String) {
    let mut command = Command::new(name);
    command.args([
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--enable-logging=stderr",
    ]);
    command
        .args(["--virtual-time-budget=5000", "--window-size=1400,1000"])
        .arg(format!("--user-data-dir={}", profile.display()));
    command.arg(format!("--blink-settings=preferredColorScheme={}", if dark { 0 } else { 1 }));
    let output = command.args(args).arg(format!("file://{}", page.display())).output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    (text(&output.stdout), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// What the page told of itself, on a screen so wide.
fn facts(name: &str, folder: &Path, width: u32, dark: bool) -> Value {
    let page = folder.join("frame.html");
    fs::write(&page, frame(width)).unwrap();
    let (dom, log) = shown(name, &folder.join("profile"), &page, dark, &["--dump-dom".to_owned()]);
    assert!(!log.contains("CONSOLE"), "{log}");
    let facts =
        dom.split_once("<pre id=\"facts\">").and_then(|(_, rest)| rest.split_once("</pre>")).unwrap().0;
    let facts = facts.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&");
    serde_json::from_str(&facts).unwrap_or_else(|e| panic!("{e}: {facts:?}\n{log}"))
}

#[test]
fn the_report_can_be_read_on_wide_and_narrow_screens_light_and_dark() {
    let Some(name) = chromium() else {
        not_tested("how the report looks needs Chromium (Debian's chromium)");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let folder: PathBuf = dir.path().canonicalize().unwrap();
    prune(&folder, "out");
    let report = fs::read_to_string(folder.join("out/report.html")).unwrap();
    fs::write(folder.join("measured.html"), report.replace("</body>", &format!("{MEASURE}</body>"))).unwrap();
    for (width, dark) in [(1280, false), (1280, true), (360, false), (360, true)] {
        let facts = facts(name, &folder, width, dark);
        assert_eq!(facts["width"], width);
        assert!(facts["scrolled"].as_u64().unwrap() <= u64::from(width), "wider than its screen: {facts}");
        // What WCAG 2.2 asks of text, level AA.
        assert!(facts["contrast"].as_f64().unwrap() >= 4.5, "text that is hard to read: {facts}");
        assert_eq!((&facts["broken"], &facts["unnamed"]), (&0.into(), &0.into()), "{facts}");
        assert_eq!((&facts["sorted"], &facts["ascending"]), (&"ascending".into(), &true.into()), "{facts}");
        assert_eq!((&facts["landmarks"], &facts["dark"]), (&4.into(), &dark.into()), "{facts}");
        let levels: Vec<u64> =
            facts["headings"].as_array().unwrap().iter().map(|level| level.as_u64().unwrap()).collect();
        let steps = levels.windows(2).all(|pair| pair[1] <= pair[0] + 1);
        assert!(
            levels[0] == 1 && levels.iter().filter(|level| **level == 1).count() == 1 && steps,
            "{levels:?}"
        );
    }
    let picture = folder.join("picture.png");
    let args = [format!("--screenshot={}", picture.display())];
    shown(name, &folder.join("profile"), &folder.join("out/report.html"), false, &args);
    let mut reader =
        png::Decoder::new(std::io::BufReader::new(fs::File::open(&picture).unwrap())).read_info().unwrap();
    let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
    let info = reader.next_frame(&mut pixels).unwrap();
    assert_eq!((info.width, info.height), (1400, 1000));
    let bytes = pixels.len() / (1400 * 1000);
    let white = pixels.chunks_exact(bytes).filter(|pixel| pixel[..3] == [255; 3]).count();
    let share = white as f64 / (1400.0 * 1000.0);
    assert!((0.5..0.98).contains(&share), "{share} of the picture is white");
}
