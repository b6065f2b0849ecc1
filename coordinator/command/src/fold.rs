//! Lines that fit a terminal.

use console::measure_text_width;

/// Columns that tables fit. On a narrower terminal nothing is folded, as it would tear these apart.
const LEAST: usize = 80;
/// The most columns of a name that a line begins with, and that its other lines leave free.
const NAMES: usize = 16;

/// The same text for a terminal of so many columns: wider lines are folded at blanks, and go on below what they say of their name.
pub(crate) fn folded(text: &str, columns: usize) -> String {
    let fits = |line: &&str| columns < LEAST || measure_text_width(line) <= columns;
    let lines = text.lines().map(|line| if fits(&line) { line.to_owned() } else { fold(line, columns) });
    lines.collect::<Vec<_>>().join("\n")
}

fn fold(line: &str, columns: usize) -> String {
    let indent = indent(line);
    let (mut folded, mut used) = (String::new(), 0);
    for word in line.split_inclusive(' ') {
        if used > indent && used + measure_text_width(word.trim_end()) > columns {
            folded.truncate(folded.trim_end().len());
            folded.push('\n');
            folded.push_str(&" ".repeat(indent));
            used = indent;
        }
        folded.push_str(word);
        used += measure_text_width(word);
    }
    folded
}

/// Where the further lines of a line begin: below what follows its name, or else two columns to the right of it.
fn indent(line: &str) -> usize {
    let begin = line.len() - line.trim_start().len();
    let after_name = (begin == 0).then(|| line.split_once("  ")).flatten();
    match after_name.map(|(_, rest)| line.len() - rest.trim_start().len()) {
        Some(column) if column <= NAMES => column,
        _ => begin + 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_folded_at_blanks_below_what_they_say() {
        let long = format!("sparsity     {}", "a word ".repeat(20).trim_end());
        let plain = format!("  ({}end)", "12.2 MiB, ".repeat(12));
        let path = format!("model        /{}", "x".repeat(100));
        let row = format!("package  {}", "1 ".repeat(35).trim_end());
        let text = [&long, &plain, &path, &row].map(String::as_str).join("\n");
        let shown = folded(&text, 80);
        let lines: Vec<&str> = shown.lines().collect();
        assert!(lines.iter().all(|line| line.len() <= 80 || line.contains("/xxx")), "{shown}");
        assert!(lines[0].starts_with("sparsity     a word"), "{shown}");
        assert_eq!(lines[1].find(|c: char| c != ' '), Some(13), "{shown}");
        assert_eq!(lines.last(), Some(&&*row), "{shown}");
        let again = lines.iter().position(|line| line.starts_with("  (12.2")).unwrap();
        assert_eq!(lines[again + 1].find(|c: char| c != ' '), Some(4), "{shown}");
        // Nothing but blanks changes.
        let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(words(&shown), words(&text));
        assert_eq!(folded(&text, 60), text);
        assert_eq!(folded(&text, 500), text);
    }
}
