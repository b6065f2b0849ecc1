//! Prompt files: `.txt` with a prompt a line, `.csv` and `.tsv` by a column of the header, `.jsonl` by a key. Read as a stream, so
//! that a file of millions of captions costs no memory, and hashed to its end.
//!
//! The place of a prompt in its file decides its noise, so none is ever left out in silence: blank lines aside, every line, row or
//! object gives exactly one prompt or an error.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use obsdiff_files::open_regular;
use obsdiff_proto::Hasher;
use serde::Deserialize;
use serde::de::{MapAccess, Visitor};

use super::lines::{Line, Lines};
use super::table::{Dialect, TableReader};
use crate::Error;

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

/// Gives each prompt of a file, trimmed, to `take` until it wants no more, and returns the SHA-256 of the whole file.
pub(super) fn read(
    path: &Path,
    column: Option<&str>,
    mut take: impl FnMut(String) -> bool,
) -> Result<String> {
    let format = PromptFormat::of(path, column)?;
    let file = open_regular(path).map_err(|e| Error::file(path, e))?;
    let bytes = file.metadata().map_err(|e| Error::file(path, e))?.len();
    if bytes > MAX_FILE_BYTES {
        return Err(Error::content(path, format!("is larger than {} GiB", MAX_FILE_BYTES >> 30)).into());
    }
    let mut source = Hashing { file, hash: Hasher::default() };
    let mut any = false;
    let mut take = |prompt: &str| {
        any = true;
        take(prompt.trim().to_owned())
    };
    let lines = Lines::new(path, &mut source);
    match format {
        PromptFormat::Lines => text(lines, &mut take)?,
        PromptFormat::Json(key) => objects(lines, key, &mut take)?,
        PromptFormat::Table(dialect, column) => {
            rows(path, TableReader::new(lines, dialect), column, &mut take)?
        }
    }
    io::copy(&mut source, &mut io::sink()).map_err(|e| Error::file(path, e))?;
    if any {
        Ok(source.hash.finish().to_string())
    } else {
        Err(Error::content(path, "holds no prompt: write some into it").into())
    }
}

enum PromptFormat<'a> {
    Lines,
    Json(&'a str),
    Table(Dialect, &'a str),
}

impl<'a> PromptFormat<'a> {
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
            "csv" => Ok(Self::Table(Dialect::Csv, column("column of its header")?)),
            "tsv" => Ok(Self::Table(Dialect::Tsv, column("column of its header")?)),
            "jsonl" => Ok(Self::Json(column("key")?)),
            _ => Err(Error::content(path, "is not a .txt, .csv, .tsv or .jsonl file").into()),
        }
    }
}

type TakePrompt<'a> = &'a mut dyn FnMut(&str) -> bool;

/// A prompt a line; blank lines part them at will.
fn text<R: Read>(mut lines: Lines<'_, R>, take: TakePrompt<'_>) -> Result<()> {
    while let Some(line) = lines.next()? {
        if !line.text.trim().is_empty() && !take(&line.text) {
            break;
        }
    }
    Ok(())
}

/// A JSON object a line, the prompt under `key`.
fn objects<R: Read>(mut lines: Lines<'_, R>, key: &str, take: TakePrompt<'_>) -> Result<()> {
    while let Some(Line { number, text, .. }) = lines.next()? {
        if text.trim().is_empty() {
            continue;
        }
        let object: Object = serde_json::from_str(&text)
            .map_err(|e| lines.refuse(number, &format!("is not a JSON object: {e}")))?;
        let mut values = object.0.iter().filter(|(name, _)| name == key).map(|(_, value)| value);
        let prompt = match (values.next(), values.next()) {
            (Some(Text(Some(prompt))), None) => prompt,
            (Some(Text(None)), None) => {
                return Err(lines.refuse(number, &format!("has a `{key}` that is not a string")).into());
            }
            (Some(_), Some(_)) => {
                return Err(lines.refuse(number, &format!("has `{key}` more than once")).into());
            }
            (None, _) => {
                let keys: Vec<&str> = object.0.iter().map(|(name, _)| name.as_str()).collect();
                let problem = format!("has no key `{key}`: it has {}", keys.join(", "));
                return Err(PromptError { error: lines.refuse(number, &problem), column: true });
            }
        };
        if prompt.contains('\0') {
            return Err(lines.refuse(number, &format!("has a NUL character in its `{key}`")).into());
        }
        if prompt.trim().is_empty() {
            return Err(lines.refuse(number, &empty(key, "object")).into());
        }
        if !take(prompt) {
            break;
        }
    }
    Ok(())
}

/// The prompt of each row in the column of this name.
fn rows<R: Read>(
    path: &Path,
    mut table: TableReader<'_, R>,
    column: &str,
    take: TakePrompt<'_>,
) -> Result<()> {
    let Some(header) = table.next()? else { return Ok(()) };
    let names: Vec<&str> = header.fields.iter().map(|name| name.trim()).collect();
    let mut places = (0..names.len()).filter(|i| names[*i] == column);
    let at = match (places.next(), places.next()) {
        (Some(at), None) => at,
        (found, _) => {
            let problem = match found {
                Some(_) => format!("has more than one column `{column}`"),
                None => format!("has no column `{column}`: its header has {}", names.join(", ")),
            };
            return Err(PromptError { error: Error::content(path, problem), column: true });
        }
    };
    while let Some(row) = table.next()? {
        let prompt = &row.fields[at];
        if prompt.trim().is_empty() {
            return Err(table.refuse(row.line, &empty(column, "row")).into());
        }
        if !take(prompt) {
            break;
        }
    }
    Ok(())
}

fn empty(column: &str, what: &str) -> String {
    format!("has an empty `{column}`: give it a prompt, or remove the {what}")
}

/// A JSON object as it is written, with keys that repeat.
struct Object(Vec<(String, Text)>);

/// A JSON value as far as a prompt is concerned: a string, or something else.
struct Text(Option<String>);

impl<'de> Deserialize<'de> for Object {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Pairs;
        impl<'de> Visitor<'de> for Pairs {
            type Value = Object;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Object, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Object(pairs))
            }
        }
        deserializer.deserialize_map(Pairs)
    }
}

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        match serde_json::Value::deserialize(deserializer)? {
            serde_json::Value::String(text) => Ok(Self(Some(text))),
            _ => Ok(Self(None)),
        }
    }
}

/// Hashes what is read.
struct Hashing {
    file: File,
    hash: Hasher,
}

impl Read for Hashing {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read(buffer)?;
        self.hash.update(&buffer[..read]);
        Ok(read)
    }
}
