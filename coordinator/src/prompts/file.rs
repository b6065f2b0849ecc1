//! Prompt files: `.txt` with a prompt a line, `.csv` and `.tsv` by a column of the header, `.jsonl` by a key. Read as a stream, so
//! that a file of millions of captions costs no memory, and hashed to its end.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;
use std::rc::Rc;

use obsdiff_files::open_regular;
use sha2::{Digest, Sha256};

use crate::Error;

/// The longest line or record; encoders cut a prompt off after a few hundred tokens.
const MAX_LINE_BYTES: u64 = 1 << 20;
/// What may be read past one prompt before the next one has come: a record, and what readers buffer.
const READ_AHEAD_BYTES: u64 = 2 * MAX_LINE_BYTES;
const MAX_FILE_BYTES: u64 = 64 << 30;

/// Why prompts could not be read.
#[derive(Debug)]
pub(super) struct PromptError {
    pub(super) error: Error,
    /// Whether what is wrong is the column, not the file.
    pub(super) column: bool,
}

impl From<Error> for PromptError {
    fn from(error: Error) -> Self {
        Self { error, column: false }
    }
}

impl From<PromptError> for Error {
    fn from(error: PromptError) -> Self {
        error.error
    }
}

type Result<T> = std::result::Result<T, PromptError>;

/// Gives each prompt of a file, trimmed, blank ones left out, to `take` until it wants no more, and returns the SHA-256 of the whole
/// file.
pub(super) fn read(
    path: &Path,
    column: Option<&str>,
    mut take: impl FnMut(String) -> bool,
) -> Result<String> {
    let format = Format::of(path, column)?;
    let file = open_regular(path).map_err(|e| Error::file(path, e))?;
    let bytes = file.metadata().map_err(|e| Error::file(path, e))?.len();
    if bytes > MAX_FILE_BYTES {
        return Err(Error::content(path, format!("is larger than {} GiB", MAX_FILE_BYTES >> 30)).into());
    }
    let budget = Rc::new(Cell::new(READ_AHEAD_BYTES));
    let mut source = Hashing { file, hash: Sha256::new(), budget: Rc::clone(&budget) };
    let mut any = false;
    let mut some = |prompt: &str| {
        let prompt = prompt.trim();
        budget.set(READ_AHEAD_BYTES);
        prompt.is_empty() || {
            any = true;
            take(prompt.to_owned())
        }
    };
    match format {
        Format::Lines => lines(path, &mut source, &mut |_, line| Ok(some(line)))?,
        Format::Json(key) => {
            lines(path, &mut source, &mut |number, line| Ok(some(&json(path, number, line, key)?)))?
        }
        Format::Table { delimiter, column } => table(path, &mut source, delimiter, column, &mut some)?,
    }
    source.budget.set(u64::MAX);
    io::copy(&mut source, &mut io::sink()).map_err(|e| Error::file(path, e))?;
    match any {
        true => Ok(source.hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()),
        false => Err(Error::content(path, "holds no prompt").into()),
    }
}

enum Format<'a> {
    Lines,
    Json(&'a str),
    Table { delimiter: u8, column: &'a str },
}

impl<'a> Format<'a> {
    fn of(path: &Path, column_given: Option<&'a str>) -> Result<Self> {
        let extension = path.extension().map(|e| e.to_string_lossy().to_lowercase()).unwrap_or_default();
        let column = |what: &str| {
            let problem = format!("needs a column: name the {what} that holds the prompt");
            column_given.ok_or_else(|| PromptError { error: Error::content(path, problem), column: true })
        };
        match extension.as_str() {
            "txt" => match column_given {
                None => Ok(Self::Lines),
                Some(_) => {
                    let problem = "has no columns: leave the column out".to_owned();
                    Err(PromptError { error: Error::content(path, problem), column: true })
                }
            },
            "csv" => Ok(Self::Table { delimiter: b',', column: column("column of its header")? }),
            "tsv" => Ok(Self::Table { delimiter: b'\t', column: column("column of its header")? }),
            "jsonl" => Ok(Self::Json(column("key")?)),
            _ => Err(Error::content(path, "is not a .txt, .csv, .tsv or .jsonl file").into()),
        }
    }
}

/// Gives each line, counted from 1 and without its end, to `take` until that says no.
fn lines(path: &Path, source: impl Read, take: &mut dyn FnMut(u64, &str) -> Result<bool>) -> Result<()> {
    let mut source = BufReader::new(source);
    let mut line = Vec::new();
    for number in 1.. {
        line.clear();
        let read = (&mut source)
            .take(MAX_LINE_BYTES + 1)
            .read_until(b'\n', &mut line)
            .map_err(|e| unread(path, number, &e))?;
        if read == 0 {
            break;
        }
        if read as u64 > MAX_LINE_BYTES {
            return Err(too_long(path, number).into());
        }
        let text = std::str::from_utf8(&line).map_err(|_| not_text(path, number))?;
        let text = if number == 1 { text.strip_prefix('\u{feff}').unwrap_or(text) } else { text };
        if !take(number, text)? {
            break;
        }
    }
    Ok(())
}

/// The prompt of a line of JSON; a blank line has none.
fn json(path: &Path, number: u64, line: &str, key: &str) -> Result<String> {
    let refuse = |problem: String| Error::content(path, format!("line {number} {problem}"));
    if line.trim().is_empty() {
        return Ok(String::new());
    }
    let object: serde_json::Map<String, serde_json::Value> =
        serde_json::from_str(line).map_err(|e| refuse(format!("is not a JSON object: {e}")))?;
    match object.get(key) {
        Some(serde_json::Value::String(prompt)) => Ok(prompt.clone()),
        Some(_) => Err(refuse(format!("has a `{key}` that is not a string")).into()),
        None => {
            let keys: Vec<&str> = object.keys().map(String::as_str).collect();
            Err(PromptError {
                error: refuse(format!("has no key `{key}`: it has {}", keys.join(", "))),
                column: true,
            })
        }
    }
}

fn table(
    path: &Path,
    source: impl Read,
    delimiter: u8,
    column: &str,
    take: &mut dyn FnMut(&str) -> bool,
) -> Result<()> {
    let mut reader = csv::ReaderBuilder::new().delimiter(delimiter).flexible(true).from_reader(source);
    let header = reader.headers().map_err(|e| unparsed(path, 1, e))?;
    let names: Vec<&str> = header.iter().map(|name| name.trim_start_matches('\u{feff}').trim()).collect();
    let Some(at) = names.iter().position(|name| *name == column) else {
        let problem = format!("has no column `{column}`: its header has {}", names.join(", "));
        return Err(PromptError { error: Error::content(path, problem), column: true });
    };
    let mut record = csv::StringRecord::new();
    while reader.read_record(&mut record).map_err(|e| unparsed(path, 1, e))? {
        let Some(prompt) = record.get(at) else {
            let line = record.position().map_or(0, csv::Position::line);
            let problem = format!("line {line} has {} columns, so none for `{column}`", record.len());
            return Err(Error::content(path, problem).into());
        };
        if !take(prompt) {
            break;
        }
    }
    Ok(())
}

fn unparsed(path: &Path, line: u64, error: csv::Error) -> Error {
    let line = error.position().map_or(line, csv::Position::line);
    match error.kind() {
        csv::ErrorKind::Utf8 { .. } => not_text(path, line),
        csv::ErrorKind::Io(e) => unread(path, line, e),
        _ => Error::content(path, format!("line {line}: {error}")),
    }
}

fn unread(path: &Path, line: u64, error: &io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::FileTooLarge => Error::content(
            path,
            format!("has a record of more than {} KiB: is a quote left open?", MAX_LINE_BYTES >> 10),
        ),
        kind => Error::content(path, format!("line {line}: {}", io::Error::from(kind))),
    }
}

fn too_long(path: &Path, line: u64) -> Error {
    Error::content(path, format!("line {line} is longer than {} KiB", MAX_LINE_BYTES >> 10))
}

fn not_text(path: &Path, line: u64) -> Error {
    Error::content(path, format!("line {line} is not UTF-8 text"))
}

/// Hashes what is read, and stops where more bytes are read than the budget that each prompt renews.
struct Hashing {
    file: File,
    hash: Sha256,
    budget: Rc<Cell<u64>>,
}

impl Read for Hashing {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.budget.get() == 0 {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let read = self.file.read(buffer)?;
        self.budget.set(self.budget.get().saturating_sub(read as u64));
        self.hash.update(&buffer[..read]);
        Ok(read)
    }
}
