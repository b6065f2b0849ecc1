//! The report as Chromium shows it.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use obsdiff_tests::not_tested;
use serde_json::Value;

use crate::chromium::{Browser, chromium};
use crate::report::prune;

/// Sorts the table of linears by its third column, and tells of the page how it can be read, seen and sorted.
const MEASURE: &str = concat!(
    "(() => {",
    include_str!("../readability.js"),
    r#"
  const table = document.querySelector("table.sortable");
  const column = () => [...table.tBodies[0].rows].map((row) => Number(row.cells[3].dataset.value));
  const heading = table.tHead.rows[0].cells[3];
  if (!heading.hasAttribute("aria-sort")) heading.querySelector("button").click();
  return {
    ...readability(),
    ascending: column().every((value, i, all) => i === 0 || all[i - 1] <= value),
    sorted: heading.getAttribute("aria-sort"),
    broken: [...document.images].filter((image) => !image.naturalWidth).length,
    unnamed: [...document.images].filter((image) => !image.alt).length,
    landmarks: ["header", "nav", "main", "footer"].filter((name) => document.querySelectorAll(name).length === 1).length,
  };
})()"#
);

#[test]
fn the_report_can_be_read_on_wide_and_narrow_screens_light_and_dark() {
    let Some(name) = chromium() else {
        not_tested("how the report looks needs Chromium (Debian's chromium)");
        return;
    };
    let (folder, own) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    prune(folder.path(), "out");
    let report = folder.path().canonicalize().unwrap().join("out/report.html");
    let mut browser = Browser::start(name, own.path());
    browser.open(&format!("file://{}", report.display()));
    browser.until(
        "document.readyState === 'complete' && document.querySelector('table.sortable button') !== null",
    );
    for (width, dark) in [(1280, false), (1280, true), (360, false), (360, true)] {
        browser.look(width, dark);
        let facts = browser.value(MEASURE);
        assert_eq!(facts["width"], width);
        assert!(facts["scrolled"].as_u64().unwrap() <= u64::from(width), "wider than its screen: {facts}");
        // What WCAG 2.2 asks of text, level AA.
        assert!(facts["contrast"].as_f64().unwrap() >= 4.5, "text that is hard to read: {facts}");
        assert_eq!((&facts["broken"], &facts["unnamed"]), (&0.into(), &0.into()), "{facts}");
        assert_eq!((&facts["sorted"], &facts["ascending"]), (&"ascending".into(), &true.into()), "{facts}");
        assert_eq!((&facts["landmarks"], &facts["dark"]), (&4.into(), &dark.into()), "{facts}");
        let levels: Vec<u64> = facts["headings"]
            .as_array()
            .unwrap()
            .iter()
            .map(|level: &Value| level.as_u64().unwrap())
            .collect();
        let steps = levels.windows(2).all(|pair| pair[1] <= pair[0] + 1);
        assert!(
            levels[0] == 1 && levels.iter().filter(|level| **level == 1).count() == 1 && steps,
            "{levels:?}"
        );
    }
    assert_eq!(browser.problems, Vec::<String>::new());
    browser.look(1400, false);
    let picture = STANDARD.decode(browser.picture()).unwrap();
    let mut reader = png::Decoder::new(std::io::Cursor::new(picture)).read_info().unwrap();
    let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
    let info = reader.next_frame(&mut pixels).unwrap();
    assert_eq!(info.width, 1400);
    let area = info.width as usize * info.height as usize;
    let white = pixels.chunks_exact(pixels.len() / area).filter(|pixel| pixel[..3] == [255; 3]).count();
    let share = white as f64 / area as f64;
    assert!((0.5..0.98).contains(&share), "{share} of the picture is white");
}
