//! A report as a file that `compare` writes.

use std::io::Write;
use std::path::Path;

use obsdiff_engine::export::Document;

use crate::writing::{put_in_place, unfinished_beside};
use crate::{Error, Result};

/// Refuses a path for a report where something is that obsdiff did not write, or whose name is not that of a page.
///
/// # Errors
/// When it cannot become a report.
pub(crate) fn check_file(path: &Path) -> Result<()> {
    let page = path
        .extension()
        .is_some_and(|extension| ["html", "htm"].iter().any(|known| extension.eq_ignore_ascii_case(known)));
    if !page {
        return Err(Error::content(path, "is not an .html file, which a report is: give it that ending"));
    }
    // Whatever cannot be read as a regular file is not a report of obsdiff's either.
    if Document::may_replace(path).unwrap_or(false) {
        Ok(())
    } else {
        let problem = "exists and is no report that obsdiff wrote: choose another --report, or move it away";
        Err(Error::content(path, problem))
    }
}

/// Writes a report. The file appears whole or not at all, and replaces a report of obsdiff's.
///
/// # Errors
/// When another file is there, or the file cannot be written.
pub(crate) fn write_file(text: &str, path: &Path) -> Result<()> {
    check_file(path)?;
    let failed = |e| Error::file(path, e);
    // A link stays: what it leads to is replaced.
    let target = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let mut file = unfinished_beside(&target, ".html").map_err(failed)?;
    // Its own `Write` would put the temporary name behind what the system says.
    file.as_file_mut().write_all(text.as_bytes()).map_err(failed)?;
    put_in_place(file, (path, &target), || check_file(path))
}
