//! Standard output and the log as people see them, on a terminal or elsewhere.

use std::fmt::Arguments;
use std::io::{self, Write};

use crate::text::{printable, printable_log};

/// Where results go. What is formatted into it is text for people, which it writes as [`printable`] has it. Bytes, such as JSON and
/// scripts, go as they are.
pub struct TextWriter<W>(pub W);

impl<W: Write> Write for TextWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn write_fmt(&mut self, text: Arguments<'_>) -> io::Result<()> {
        self.0.write_all(printable(&text.to_string()).as_bytes())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// Where a log of text goes, which it writes as [`printable_log`] has it. Each entry has to come as one piece.
pub struct LogWriter<W>(pub W);

impl<W: Write> Write for LogWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write_all(printable_log(&String::from_utf8_lossy(bytes)).as_bytes())?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_formatted_is_shown_and_bytes_go_as_they_are() {
        let mut written = Vec::new();
        // As commands have it.
        let out: &mut dyn Write = &mut TextWriter(&mut written);
        let name = "\u{1b}[2Jname\u{202e}";
        writeln!(out, "a {name}").unwrap();
        out.write_all("{\"name\": \"\u{202e}\"}\n".as_bytes()).unwrap();
        let shown = String::from_utf8(written).unwrap();
        assert_eq!(shown, "a \\u{1b}[2Jname\\u{202e}\n{\"name\": \"\u{202e}\"}\n");
    }

    #[test]
    fn a_log_keeps_its_colours_and_shows_what_turns_text_around() {
        let mut written = Vec::new();
        LogWriter(&mut written).write_all("\u{1b}[32m INFO\u{1b}[0m a\u{2066}b\n".as_bytes()).unwrap();
        assert_eq!(String::from_utf8(written).unwrap(), "\u{1b}[32m INFO\u{1b}[0m a\\u{2066}b\n");
    }
}
