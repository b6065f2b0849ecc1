//! The lines of a text file. A line ends in LF, CRLF or CR, whichever the program that wrote the file uses.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use crate::{Error, Result};

/// The longest line or record; encoders cut a prompt off after a few hundred tokens.
pub(super) const MAX_BYTES: usize = 1 << 20;

/// A line, without its end.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Line {
    /// Counted from 1.
    pub(super) number: u64,
    pub(super) text: String,
    /// What ended it: nothing at the end of the file.
    pub(super) end: &'static str,
}

/// Reads a file line by line.
pub(super) struct Lines<'p, R> {
    path: &'p Path,
    source: BufReader<R>,
    read: u64,
}

impl<'p, R: Read> Lines<'p, R> {
    pub(super) fn new(path: &'p Path, source: R) -> Self {
        Self { path, source: BufReader::new(source), read: 0 }
    }

    /// The error that names the file and a line.
    pub(super) fn refuse(&self, line: u64, problem: &str) -> Error {
        Error::content(self.path, format!("line {line} {problem}"))
    }

    /// The next line; none at the end of the file. The byte order mark that some editors put at the start of a file is no part of
    /// its first line.
    pub(super) fn next(&mut self) -> Result<Option<Line>> {
        let number = self.read + 1;
        let mut bytes = Vec::new();
        let Some(end) = self.fill(&mut bytes, number)? else { return Ok(None) };
        self.read = number;
        let text = String::from_utf8(bytes)
            .map_err(|_| self.refuse(number, "is not UTF-8 text: save the file as UTF-8"))?;
        if text.contains('\0') {
            return Err(self.refuse(number, "holds a NUL byte: save the file as UTF-8 text"));
        }
        let text = match text.strip_prefix('\u{feff}') {
            Some(rest) if number == 1 => rest.to_owned(),
            _ => text,
        };
        Ok(Some(Line { number, text, end }))
    }

    /// Reads up to the end of a line, which it returns; nothing where the file has ended already.
    fn fill(&mut self, line: &mut Vec<u8>, number: u64) -> Result<Option<&'static str>> {
        loop {
            let buffer = self.source.fill_buf().map_err(|e| Error::file(self.path, e))?;
            if buffer.is_empty() {
                return Ok((!line.is_empty()).then_some(""));
            }
            let end = buffer.iter().position(|byte| matches!(byte, b'\n' | b'\r'));
            let taken = end.unwrap_or(buffer.len());
            let carriage_return = end.is_some_and(|at| buffer[at] == b'\r');
            if line.len() + taken > MAX_BYTES {
                return Err(self.refuse(
                    number,
                    &format!("is longer than {} KiB: give a prompt a line", MAX_BYTES >> 10),
                ));
            }
            line.extend_from_slice(&buffer[..taken]);
            self.source.consume(taken + usize::from(end.is_some()));
            if end.is_none() {
                continue;
            }
            if !carriage_return {
                return Ok(Some("\n"));
            }
            let next = self.source.fill_buf().map_err(|e| Error::file(self.path, e))?.first().copied();
            if next != Some(b'\n') {
                return Ok(Some("\r"));
            }
            self.source.consume(1);
            return Ok(Some("\r\n"));
        }
    }
}
