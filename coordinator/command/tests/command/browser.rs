//! The report as Chromium shows and prints it, and as it is used by keyboard alone.

use std::sync::LazyLock;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use obsdiff_tests::not_tested;
use serde_json::{Value, json};

use crate::chromium::{Browser, chromium};
use crate::report::prune;

/// The columns of A4 paper between margins of a centimetre, in CSS pixels.
const PAPER: u32 = 718;

/// Tells of the page how it can be read, what of it is seen and what is cut.
const MEASURE: &str = concat!(
    "(async () => {",
    include_str!("../readability.js"),
    r#"
  const shows = (element) => element.getClientRects().length > 0 && !element.closest(".unseen, .skip");
  const cut = (element) => {
    const box = element.getBoundingClientRect();
    return box.right > innerWidth + 0.5 || box.left < -0.5;
  };
  const inRegion = (element) => element.closest(".wide") && !element.matches(".wide") && getComputedStyle(element.closest(".wide")).overflowX !== "visible";
  const names = (elements) => elements.map((element) => element.outerHTML.slice(0, 80));
  const colours = async (image) => {
    await image.decode();
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
    const context = canvas.getContext("2d");
    context.drawImage(image, 0, 0);
    return new Set(new Uint32Array(context.getImageData(0, 0, canvas.width, canvas.height).data.buffer)).size;
  };
  const images = [...document.images];
  const sides = images.map((image) => image.getBoundingClientRect());
  return {
    ...readability(),
    cut: names([...document.querySelectorAll("body *")].filter((element) => shows(element) && !inRegion(element) && cut(element))),
    scrolling: names([...document.querySelectorAll(".wide")].filter((region) => region.scrollWidth > region.clientWidth + 1)),
    images: images.length,
    colours: Math.min(...await Promise.all(images.map(colours))),
    smallest: Math.min(...sides.flatMap((box) => [box.width, box.height])),
    overlapping: sides.filter((a, i) => sides.some((b, j) => i < j && a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 1 && b.top < a.bottom - 1)).length,
    unnamed: images.filter((image) => !image.alt).length,
    landmarks: ["header", "nav", "main", "footer"].filter((name) => document.querySelectorAll(name).length === 1).length,
  };
})()"#
);

/// What has the focus, whether a frame shows that, and whether it is on the screen and has a name.
const FOCUS: &str = r#"(() => {
  const element = document.activeElement;
  const style = getComputedStyle(element);
  const box = element.getBoundingClientRect();
  return {
    tag: element.tagName,
    name: element.getAttribute("aria-label") || element.textContent.trim(),
    framed: element.matches(":focus-visible") && style.outlineStyle === "solid" && parseFloat(style.outlineWidth) >= 2,
    onScreen: box.bottom > 0 && box.top < innerHeight && box.right > 0 && box.left < innerWidth,
  };
})()"#;

/// An output with a report, made once for all tests.
static OUTPUT: LazyLock<tempfile::TempDir> = LazyLock::new(|| {
    let folder = tempfile::tempdir().unwrap();
    prune(folder.path(), "out");
    folder
});

/// A browser that shows the report, whose profile lies in `own`.
fn report(own: &tempfile::TempDir) -> Option<Browser> {
    let Some(name) = chromium() else {
        not_tested("how the report looks needs Chromium (Debian's chromium)");
        return None;
    };
    let page = OUTPUT.path().canonicalize().unwrap().join("out/report.html");
    let mut browser = Browser::start(name, own.path());
    browser.look(1280, false);
    browser.open(&format!("file://{}", page.display()));
    browser.until(
        "document.readyState === 'complete' && document.querySelector('table.sortable button') !== null",
    );
    Some(browser)
}

#[test]
fn the_report_can_be_read_on_wide_and_narrow_screens_light_and_dark() {
    let own = tempfile::tempdir().unwrap();
    let Some(mut browser) = report(&own) else { return };
    for (width, dark) in [360, 768, 1280].into_iter().flat_map(|width| [(width, false), (width, true)]) {
        browser.look(width, dark);
        let facts = browser.value(MEASURE);
        assert_eq!((&facts["width"], &facts["dark"]), (&width.into(), &dark.into()), "{facts}");
        assert!(facts["scrolled"].as_u64().unwrap() <= u64::from(width), "wider than its screen: {facts}");
        assert_eq!(facts["cut"], json!([]), "{width}: {facts}");
        if width == 1280 {
            assert_eq!(facts["scrolling"], json!([]), "a table does not fit: {facts}");
        }
        // What WCAG 2.2 asks of text, level AA.
        assert!(facts["contrast"].as_f64().unwrap() >= 4.5, "text that is hard to read: {facts}");
        // Pictures of two prompts and their differences, each with more than one colour, and as large as the screen has room for.
        assert_eq!((&facts["images"], &facts["unnamed"]), (&6.into(), &0.into()), "{facts}");
        assert!(facts["colours"].as_u64().unwrap() > 1, "a picture is empty: {facts}");
        assert!(facts["smallest"].as_f64().unwrap() >= f64::from(width.min(768)) / 4.0, "{facts}");
        assert_eq!((&facts["overlapping"], &facts["landmarks"]), (&0.into(), &4.into()), "{facts}");
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

#[test]
fn the_report_is_used_by_keyboard_alone() {
    let own = tempfile::tempdir().unwrap();
    let Some(mut browser) = report(&own) else { return };
    let stops =
        browser.value("[...document.querySelectorAll('a, button, summary, [tabindex=\"0\"]')].length");
    let mut seen = Vec::new();
    for stop in 0..stops.as_u64().unwrap() {
        browser.key("Tab");
        let focus = browser.value(FOCUS);
        for fact in ["framed", "onScreen"] {
            assert_eq!(focus[fact], true, "stop {stop}, {fact}: {focus}");
        }
        assert!(!focus["name"].as_str().unwrap().is_empty(), "{focus}");
        seen.push((focus["tag"].as_str().unwrap().to_owned(), focus["name"].as_str().unwrap().to_owned()));
    }
    // From the top to the bottom: the first link, those to the sections, then what is in these.
    assert_eq!(seen[0].1, "Skip to the report");
    assert_eq!(seen[1], ("A".to_owned(), "Pictures".to_owned()));
    assert_eq!(seen.last().unwrap(), &("PRE".to_owned(), "The job file".to_owned()), "{seen:?}");
    for tag in ["BUTTON", "SUMMARY", "DIV"] {
        assert!(seen.iter().any(|(stop, _)| stop == tag), "no {tag} in {seen:?}");
    }

    // The first link leads past the head of the page, and another to its section.
    browser.value("(document.activeElement.blur(), scrollTo(0, 0), document.querySelector('.skip').focus())");
    browser.key("Enter");
    browser.until("location.hash === '#main' && document.activeElement.id === 'main'");
    browser.value("document.querySelector('nav a[href=\"#linears\"]').focus()");
    browser.key("Enter");
    browser.until("location.hash === '#linears'");
    browser.until("Math.abs(document.getElementById('linears').getBoundingClientRect().top) < innerHeight");

    // Enter and the space bar sort, one way and then the other.
    let order = r#"(() => {
      const table = document.querySelector("table.sortable");
      const zeros = [...table.tBodies[0].rows].map((row) => Number(row.cells[3].dataset.value));
      const sorted = (compare) => zeros.every((value, i) => i === 0 || compare(zeros[i - 1], value));
      return [table.tHead.rows[0].cells[3].getAttribute("aria-sort"), sorted((a, b) => a <= b), sorted((a, b) => a >= b)];
    })()"#;
    assert_eq!(browser.value(order), json!([null, false, false]));
    browser.value(
        "document.querySelector('table.sortable').tHead.rows[0].cells[3].querySelector('button').focus()",
    );
    browser.key("Enter");
    assert_eq!(browser.value(order), json!(["ascending", true, false]));
    browser.key(" ");
    assert_eq!(browser.value(order), json!(["descending", false, true]));

    // Numbers behind the chart open.
    browser.value("document.querySelector('summary').focus()");
    browser.key("Enter");
    assert_eq!(browser.value("document.querySelector('details').open"), true);

    // On a narrow screen a wide table scrolls by arrow keys.
    browser.look(360, false);
    browser.value("(document.querySelector('.wide:has(table.sortable)').focus(), 0)");
    for _ in 0..3 {
        browser.key("ArrowRight");
    }
    browser.until("document.activeElement.scrollLeft > 0");
    assert_eq!(browser.problems, Vec::<String>::new());
}

#[test]
fn the_report_prints_whole_and_in_light_colours() {
    let own = tempfile::tempdir().unwrap();
    let Some(mut browser) = report(&own) else { return };
    for dark in [false, true] {
        browser.paper(PAPER, dark);
        let facts = browser.value(MEASURE);
        assert_eq!((&facts["width"], &facts["dark"]), (&PAPER.into(), &false.into()), "{facts}");
        assert!(facts["contrast"].as_f64().unwrap() >= 4.5, "text that is hard to read: {facts}");
        assert_eq!((&facts["cut"], &facts["scrolling"]), (&json!([]), &json!([])), "cut on paper: {facts}");
        // Neither links within the page nor signs to sort by make sense on paper.
        let hidden = "[...document.querySelectorAll('nav, .skip')].every((element) => element.getClientRects().length === 0)";
        assert_eq!(browser.value(hidden), true);
        let cells =
            "[...document.querySelectorAll('.h0')].map((cell) => getComputedStyle(cell).backgroundColor)";
        let cells = browser.value(cells);
        assert!(cells.as_array().unwrap().iter().all(|colour| *colour == "rgb(247, 251, 255)"), "{cells}");
    }
    let file = STANDARD.decode(browser.pdf()).unwrap();
    let text = String::from_utf8_lossy(&file);
    let pages = text.matches("/Type /Page\n").count();
    assert!(file.starts_with(b"%PDF-") && (3..20).contains(&pages), "{pages} pages");
    // A4 in points, upright.
    let boxes = text.matches("/MediaBox [0 0 595").count() + text.matches("/MediaBox [0 0 594").count();
    assert_eq!(boxes, pages, "{pages} pages");
}
