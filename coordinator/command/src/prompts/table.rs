//! Tables of text, read strictly: whatever does not keep to its dialect is refused, where other readers guess and so merge rows or
//! cut them.
//!
//! Both dialects have a header, and as many fields in every row. A field that begins with a quote ends with the next quote that is
//! not doubled, and a doubled quote inside of it stands for one.
//! - `.csv` is RFC 4180: fields are parted by commas, a quoted one may hold commas and line breaks, and one that is not quoted holds
//!   no quote.
//! - `.tsv` parts fields by tabs. Tables of tabs are often written without any quoting, so a quote that does not begin a field stands
//!   for itself, and a quoted field ends on its line: one that a quote merely begins with cannot swallow the rows below it.

use std::io::Read;

use super::lines::{Lines, MAX_BYTES};
use crate::{Error, Result};

/// How a table is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dialect {
    Csv,
    Tsv,
}

impl Dialect {
    fn delimiter(self) -> char {
        match self {
            Self::Csv => ',',
            Self::Tsv => '\t',
        }
    }
}

/// A row and the line that it starts on.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) line: u64,
    pub(super) fields: Vec<String>,
}

/// Reads a table row by row, its header first.
pub(super) struct TableReader<'p, R> {
    lines: Lines<'p, R>,
    dialect: Dialect,
    /// Fields of the header, once it is read.
    width: Option<usize>,
}

/// Where in a field its reader is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum FieldState {
    Start,
    Plain,
    Quoted,
    /// Behind a quote inside of a quoted field: it closes the field, or is the first of two.
    Closed,
}

/// The fields of a row as far as they are read.
struct Reading {
    fields: Vec<String>,
    field: String,
    place: FieldState,
    /// The line of the last quote that opened a field.
    opened: u64,
}

impl<'p, R: Read> TableReader<'p, R> {
    pub(super) fn new(lines: Lines<'p, R>, dialect: Dialect) -> Self {
        Self { lines, dialect, width: None }
    }

    /// The next row; none at the end of the file. A blank line holds no row.
    pub(super) fn next(&mut self) -> Result<Option<Row>> {
        let Some(row) = self.row()? else { return Ok(None) };
        let (found, width) = (row.fields.len(), *self.width.get_or_insert(row.fields.len()));
        let remedy = match (found > width, self.dialect) {
            (true, Dialect::Csv) => ": a field that holds a comma belongs in quotes",
            (true, Dialect::Tsv) => ": a field cannot hold a tab outside of quotes",
            (false, _) => ": leave a field empty rather than out",
        };
        if found == width {
            Ok(Some(row))
        } else {
            let fields = if found == 1 { "field" } else { "fields" };
            let problem = format!("has {found} {fields}, but the header has {width}{remedy}");
            Err(self.refuse(row.line, &problem))
        }
    }

    pub(super) fn refuse(&self, line: u64, problem: &str) -> Error {
        self.lines.refuse(line, problem)
    }

    fn row(&mut self) -> Result<Option<Row>> {
        let mut line = loop {
            match self.lines.next()? {
                Some(line) if line.text.trim_matches(' ').is_empty() => {}
                Some(line) => break line,
                None => return Ok(None),
            }
        };
        let first = line.number;
        let mut reading =
            Reading { fields: Vec::new(), field: String::new(), place: FieldState::Start, opened: first };
        let mut bytes = 0;
        loop {
            bytes += line.text.len() + line.end.len();
            for character in line.text.chars() {
                reading
                    .take(character, line.number, self.dialect)
                    .map_err(|p| self.refuse(line.number, &p))?;
            }
            if reading.place != FieldState::Quoted {
                reading.fields.push(reading.field);
                return Ok(Some(Row { line: first, fields: reading.fields }));
            }
            reading.field.push_str(line.end);
            let open = |problem: &str| Err(self.refuse(reading.opened, problem));
            if self.dialect == Dialect::Tsv {
                return open("opens a quote that does not close on the line: double it and quote the field");
            }
            if bytes > MAX_BYTES {
                return open(&format!("opens a quote that does not close within {} KiB", MAX_BYTES >> 10));
            }
            let opened = reading.opened;
            line = match self.lines.next()? {
                Some(line) => line,
                None => return Err(self.refuse(opened, "opens a quote that never closes")),
            };
        }
    }
}

impl Reading {
    /// Takes one character of line `line`, or says what is wrong there.
    fn take(&mut self, character: char, line: u64, dialect: Dialect) -> std::result::Result<(), String> {
        let delimiter = dialect.delimiter();
        match (self.place, character) {
            (FieldState::Start, '"') => {
                self.place = FieldState::Quoted;
                self.opened = line;
            }
            (FieldState::Quoted, '"') => self.place = FieldState::Closed,
            (FieldState::Quoted, _) => self.field.push(character),
            (FieldState::Closed, '"') => {
                self.place = FieldState::Quoted;
                self.field.push('"');
            }
            (_, _) if character == delimiter => {
                self.fields.push(std::mem::take(&mut self.field));
                self.place = FieldState::Start;
            }
            (FieldState::Closed, _) => {
                return Err(format!(
                    "goes on behind the quote that closes a field, which was opened on line {}: double a quote inside of a field",
                    self.opened
                ));
            }
            (FieldState::Plain, '"') if dialect == Dialect::Csv => {
                return Err(
                    "has a quote inside of a field that is not quoted: double it and quote the field"
                        .to_owned(),
                );
            }
            (FieldState::Start | FieldState::Plain, _) => {
                self.place = FieldState::Plain;
                self.field.push(character);
            }
        }
        Ok(())
    }
}
