//! Text for people: tables in plain characters, numbers with units, paths in commands, and what no terminal is to obey.

use std::borrow::Cow;
use std::fmt;
use std::path::Path;
use std::time::Duration;

use console::{Alignment, measure_text_width, pad_str};

/// A table whose first column is aligned to the left and whose other columns are to the right, but for those that a chart is in.
///
/// Written here: `comfy-table` 8.0 draws the same within a wrapper for rules, headings and the blanks that end lines, of 63 lines where this
/// has 67. For these four it would be a crate more, 124 KB of a stripped program, and 1.5 seconds of a processor to build. `console`, which
/// progress bars need anyway, measures and pads the cells.
#[derive(Clone, Debug)]
pub struct Table {
    rows: Vec<Vec<String>>,
    rules: Vec<usize>,
    /// Lines above a row, which no column is as wide as.
    headings: Vec<(usize, String)>,
    /// Columns from this one on are aligned to the left, too.
    left_from: usize,
}

impl Table {
    /// A table with this header.
    pub fn new<'a>(header: impl IntoIterator<Item = &'a str>) -> Self {
        Self { rules: vec![1], ..Self::plain(header) }
    }

    /// A table with this header and no rule below it.
    pub fn plain<'a>(header: impl IntoIterator<Item = &'a str>) -> Self {
        let header = header.into_iter().map(str::to_owned).collect();
        Self { rows: vec![header], rules: Vec::new(), headings: Vec::new(), left_from: usize::MAX }
    }

    /// Aligns the columns from this one on to the left.
    pub fn left_from(self, column: usize) -> Self {
        Self { left_from: column, ..self }
    }

    /// Adds a row, each cell as [`printable_line`] has it.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().map(|cell| printable_line(&cell).into_owned()).collect());
    }

    /// Writes a line of its own below the rows so far.
    pub fn heading(&mut self, text: String) {
        self.headings.push((self.rows.len(), printable_line(&text).into_owned()));
    }

    /// Draws a rule below the rows so far.
    pub fn rule(&mut self) {
        self.rules.push(self.rows.len());
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |c: usize| {
            self.rows.iter().filter_map(|r| r.get(c)).map(|cell| measure_text_width(cell)).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let line = "-".repeat(widths.iter().sum::<usize>() + 2 * columns.saturating_sub(1));
        for (i, row) in self.rows.iter().enumerate() {
            if self.rules.contains(&i) {
                writeln!(f, "{line}")?;
            }
            for (_, heading) in self.headings.iter().filter(|(row, _)| *row == i) {
                writeln!(f, "{heading}")?;
            }
            let cells = row.iter().zip(&widths).enumerate().map(|(c, (cell, width))| match c {
                c if c == 0 || c >= self.left_from => pad_str(cell, *width, Alignment::Left, None),
                _ => pad_str(cell, *width, Alignment::Right, None),
            });
            writeln!(f, "{}", cells.collect::<Vec<_>>().join("  ").trim_end())?;
        }
        Ok(())
    }
}

/// A number of operations, such as `1.23 PFLOP`.
pub fn flops(count: f64) -> String {
    scaled(
        count,
        &[("EFLOP", 1e18), ("PFLOP", 1e15), ("TFLOP", 1e12), ("GFLOP", 1e9), ("MFLOP", 1e6)],
        "FLOP",
    )
}

/// A count in a few digits, such as `2.03 B`.
pub fn count(count: u64) -> String {
    scaled(count as f64, &[("T", 1e12), ("B", 1e9), ("M", 1e6), ("K", 1e3)], "").trim_end().to_owned()
}

/// A value in the largest of the `units` that it reaches. (`unit-prefix`, which draws progress bars, knows SI's prefixes alone: it has no `B`
/// for a billion, and begins at a thousand operations.)
fn scaled(value: f64, units: &[(&str, f64)], small: &str) -> String {
    match units.iter().find(|(_, unit)| value >= *unit) {
        Some((name, unit)) => format!("{:.2} {name}", value / unit),
        None => format!("{value:.0} {small}"),
    }
}

/// A duration, such as `12.3 s`, `4 min 5 s` or `3 h 20 min`. (`humantime`, which reads durations, writes every unit down to the
/// nanosecond; `indicatif`, which draws progress bars, writes the largest one alone.)
pub fn duration(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    let whole = seconds.round() as u64;
    match seconds {
        s if s < 1.0 => format!("{:.0} ms", s * 1e3),
        s if s < 59.95 => format!("{s:.1} s"),
        s if s < 3599.5 => format!("{} min {} s", whole / 60, whole % 60),
        _ => format!("{} h {} min", whole / 3600, whole % 3600 / 60),
    }
}

/// A share of 1 as per cent, such as `50.00%`; `-` of nothing.
pub fn percent(part: u64, whole: u64) -> String {
    match whole {
        0 => "-".to_owned(),
        _ => format!("{:.2}%", 100.0 * part as f64 / whole as f64),
    }
}

/// Text that may hold names and words from elsewhere, as people can see it: control characters, and those by which text is written from
/// right to left, become escapes such as `\u{1b}`. A terminal would obey them, and show something else than is there. Lines stay lines.
pub fn printable(text: &str) -> Cow<'_, str> {
    escaped(text, &['\n'])
}

/// The same as one line.
pub fn printable_line(text: &str) -> Cow<'_, str> {
    escaped(text, &[])
}

/// The same for a log, whose writer has escaped what others would colour, and colours the rest.
pub fn printable_log(text: &str) -> Cow<'_, str> {
    escaped(text, &['\n', '\u{1b}'])
}

fn escaped<'t>(text: &'t str, kept: &[char]) -> Cow<'t, str> {
    let obeyed = |c: char| (c.is_control() || is_bidi_control(c)) && !kept.contains(&c);
    if !text.contains(obeyed) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            c if !obeyed(c) => shown.push(c),
            '\n' | '\t' => shown.extend(c.escape_default()),
            c => shown.extend(c.escape_unicode()),
        }
    }
    Cow::Owned(shown)
}

/// Whether a character has Unicode's property `Bidi_Control`.
const fn is_bidi_control(c: char) -> bool {
    matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// A word as a shell reads it, for commands that are shown to be run. One that no shell can be given is shown as it is.
pub fn shell_word(word: &str) -> Cow<'_, str> {
    shlex::try_quote(word).unwrap_or(Cow::Borrowed(word))
}

/// A path as a shell reads it, as [`shell_word`] has it.
pub fn shell_path(path: &Path) -> String {
    shell_word(&path.to_string_lossy()).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_rules_stand_where_they_were_drawn() {
        let mut table = Table::new(["name", "n"]);
        table.row(["größer".to_owned(), "7".to_owned()]);
        table.rule();
        table.row(["all".to_owned(), "1234".to_owned()]);
        table.heading("a heading of any width".to_owned());
        table.row(["one".to_owned(), "1".to_owned()]);
        assert_eq!(
            table.to_string(),
            "name       n\n------------\ngrößer     7\n------------\nall     1234\na heading of any width\none        1\n"
        );
        // A terminal shows each of these two as wide as two letters. No line ends in blanks.
        let mut table = Table::plain(["host", "n", ""]).left_from(2);
        table.row(["東京", "7", "#"].map(str::to_owned));
        table.row(["paris".to_owned(), "12".to_owned()]);
        assert_eq!(table.to_string(), "host    n\n東京    7  #\nparis  12\n");
    }

    #[test]
    fn what_a_terminal_would_obey_is_shown_as_an_escape() {
        let hostile = "a\tb\n\u{1b}[31mred\u{9b}0m\r\u{7}\u{7f}\u{202e}gnp.exe\u{2069}\u{200f}";
        let shown = "\\u{1b}[31mred\\u{9b}0m\\u{d}\\u{7}\\u{7f}\\u{202e}gnp.exe\\u{2069}\\u{200f}";
        assert_eq!(printable(hostile), format!("a\\tb\n{shown}"));
        assert_eq!(printable_line(hostile), format!("a\\tb\\n{shown}"));
        assert_eq!(printable_log("\u{1b}[1mb\u{1b}[0m\u{9b}\n"), "\u{1b}[1mb\u{1b}[0m\\u{9b}\n");
        for plain in ["größer, 東京, \"q\" \\u{1b}\n", ""] {
            assert!(matches!(printable(plain), Cow::Borrowed(same) if same == plain), "{plain}");
        }
        // A table lines up as it is shown.
        let mut table = Table::plain(["name", "n"]);
        table.row(["\u{1b}[2J\nb".to_owned(), "7".to_owned()]);
        assert_eq!(table.to_string(), "name          n\n\\u{1b}[2J\\nb  7\n");
    }

    #[test]
    fn a_shell_reads_a_path_as_it_is() {
        for path in ["job.toml", "/a/b-c_d.toml", "d \"q\" $x/job.toml", "it's", "ö b", ""] {
            let quoted = shell_path(Path::new(path));
            assert_eq!(shlex::split(&quoted).as_deref(), Some(&[path.to_owned()][..]), "{quoted}");
        }
        assert_eq!(shell_path(Path::new("a/job.toml")), "a/job.toml");
    }

    #[test]
    fn numbers_have_a_fitting_unit() {
        assert_eq!((flops(1.234e15), flops(12.0)), ("1.23 PFLOP".into(), "12 FLOP".into()));
        assert_eq!((count(2_028_000_000), count(12)), ("2.03 B".into(), "12".into()));
        let times = [
            (0.25, "250 ms"),
            (12.34, "12.3 s"),
            (59.96, "1 min 0 s"),
            (245.0, "4 min 5 s"),
            (12_000.0, "3 h 20 min"),
        ];
        for (seconds, text) in times {
            assert_eq!(duration(Duration::from_secs_f64(seconds)), text);
        }
        assert_eq!((percent(1, 2), percent(0, 0)), ("50.00%".into(), "-".into()));
    }
}
