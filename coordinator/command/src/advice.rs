//! What to do next about a file that the system refuses.

use std::error::Error;
use std::io::{self, ErrorKind};
use std::iter::successors;

use obsdiff_proto::causes;

/// An error and its causes in one line, with what to do next where that ends with the system's own words, which never say that.
pub(crate) fn with_next_step(error: &(dyn Error + 'static)) -> String {
    let line = causes(error);
    let kind = match system_error(error) {
        // Who wraps it may have said more after its words.
        Some(system) => line.ends_with(&system.to_string()).then(|| system.kind()),
        None => kind_in_text(&line),
    };
    match kind.map(next_step) {
        Some(next) => format!("{line}: {next}"),
        None => line,
    }
}

/// The system's error at the end of a chain of causes.
fn system_error<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a io::Error> {
    successors(Some(error), |&error| error.source()).filter_map(|error| raw(error.downcast_ref()?)).last()
}

/// The system's error that an error of input and output is, or holds: that is not among its causes.
fn raw(error: &io::Error) -> Option<&io::Error> {
    match error.raw_os_error() {
        Some(_) => Some(error),
        None => raw(error.get_ref()?.downcast_ref()?),
    }
}

/// The kind of the system's error that a line ends with: the standard library writes `(os error 2)` after its words. This is for errors
/// that come as text alone: those that workers report to their coordinator and that other processes answer, and the problems of keys,
/// files and URLs that quote the system.
fn kind_in_text(line: &str) -> Option<ErrorKind> {
    let (_, number) = line.strip_suffix(')')?.rsplit_once(" (os error ")?;
    Some(io::Error::from_raw_os_error(number.parse().ok()?).kind())
}

fn next_step(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::NotFound => "check the path; a relative one starts from the current folder",
        ErrorKind::NotADirectory => "check the path: it leads through a file",
        ErrorKind::IsADirectory => "give a file, not a folder",
        ErrorKind::AlreadyExists => "choose another path, or move away what is there",
        ErrorKind::PermissionDenied => "give this user the right to it, or choose another path",
        ErrorKind::ReadOnlyFilesystem => "choose a path that can be written",
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => "make room, or choose another path",
        ErrorKind::InvalidFilename => "choose a shorter name",
        ErrorKind::OutOfMemory => "free memory, then run the same command again",
        _ => "run the same command again; if it fails again, check the disk and the limits of this process",
    }
}

#[cfg(test)]
mod tests {
    use thiserror::Error;

    use super::*;

    /// An error that says this, with or without a cause.
    #[derive(Debug, Error)]
    #[error("{words}")]
    struct TextError {
        words: String,
        source: Option<io::Error>,
    }

    fn line_of(words: &str, source: Option<io::Error>) -> String {
        with_next_step(&TextError { words: words.to_owned(), source })
    }

    /// What is said of an error of the system that is known as such.
    fn known(number: i32) -> String {
        line_of("a/b", Some(io::Error::from_raw_os_error(number)))
    }

    #[test]
    fn what_the_system_says_alone_gets_a_next_step_and_nothing_else_does() {
        // Of an error that comes as text, too.
        let line = |number: i32| line_of(&format!("a/b: {}", io::Error::from_raw_os_error(number)), None);
        assert_eq!(
            line(libc::ENOENT),
            "a/b: No such file or directory (os error 2): check the path; a relative one starts from the current folder"
        );
        for number in [libc::EACCES, libc::EISDIR, libc::ENOTDIR, libc::ENOSPC, libc::EIO, libc::ENAMETOOLONG]
        {
            assert!(!line(number).ends_with(')'), "{}", line(number));
            assert_eq!(known(number), line(number));
        }
        let said = "a: No such file or directory (os error 2); it is kept (see b)";
        assert_eq!(line_of(said, None), said);
        assert_eq!(line_of(said, Some(io::Error::from_raw_os_error(libc::ENOENT))), said);
    }

    #[test]
    fn the_step_follows_the_cause_and_not_what_looks_like_one() {
        // A file may have any name.
        let name = "photo (os error 28)";
        let denied = || io::Error::from_raw_os_error(libc::EACCES);
        let said = line_of(name, Some(denied()));
        assert!(said.ends_with(next_step(ErrorKind::PermissionDenied)), "{said}");
        let wrapped = io::Error::other(denied());
        assert_eq!(line_of(name, Some(wrapped)), said);
        // What a line ends with need not be what the system said.
        let quoted = format!("{} at {name}", denied());
        assert_eq!(line_of(&quoted, Some(denied())), quoted);
        let unnamed = io::Error::new(ErrorKind::InvalidInput, "is a FIFO: give a regular file");
        assert_eq!(line_of("a", Some(unnamed)), "a: is a FIFO: give a regular file");
    }
}
