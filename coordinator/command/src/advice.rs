//! What to do next about a file that the system refuses.

use std::io::{self, ErrorKind};

/// The line of an error, with what to do next where it ends with the system's own words, which never say that.
pub(crate) fn with_next_step(line: String) -> String {
    match system_error(&line).map(next_step) {
        Some(next) => format!("{line}: {next}"),
        None => line,
    }
}

/// The system's error that a line ends with: the standard library writes `(os error 2)` after its words.
fn system_error(line: &str) -> Option<ErrorKind> {
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
    use super::*;

    #[test]
    fn what_the_system_says_alone_gets_a_next_step_and_nothing_else_does() {
        let line = |number: i32| with_next_step(format!("a/b: {}", io::Error::from_raw_os_error(number)));
        assert_eq!(
            line(libc::ENOENT),
            "a/b: No such file or directory (os error 2): check the path; a relative one starts from the current folder"
        );
        for number in [libc::EACCES, libc::EISDIR, libc::ENOTDIR, libc::ENOSPC, libc::EIO, libc::ENAMETOOLONG]
        {
            assert!(!line(number).ends_with(')'), "{}", line(number));
        }
        let said = "a: No such file or directory (os error 2); it is kept (see b)".to_owned();
        assert_eq!(with_next_step(said.clone()), said);
    }
}
