//! Files that a user names: opened only where they are regular ones.
//!
//! Opening a FIFO waits for a writer, and reading a terminal for its user: a path given by mistake would hang the process for ever.

use std::fs::{self, File, FileType, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::OFlags;

/// Opens a regular file to read it, directly or through symbolic links. Never waits.
///
/// # Errors
/// When it cannot be opened, or is a directory, FIFO, socket or device.
pub fn open_regular(path: &Path) -> io::Result<File> {
    // Before it is opened: opening a device can already do something. After it again: another file may stand there by then.
    check(fs::metadata(path)?.file_type())?;
    let flags = OFlags::NONBLOCK.bits() as i32;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    check(file.metadata()?.file_type())?;
    Ok(file)
}

/// Reads a regular file of at most `limit` bytes.
///
/// # Errors
/// As [`open_regular`]; when the file is larger, or cannot be read.
pub fn read_regular(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    open_regular(path)?.take(limit.saturating_add(1)).read_to_end(&mut content)?;
    if content.len() as u64 > limit {
        let size = if limit >= 1 << 20 { format!("{} MiB", limit >> 20) } else { format!("{limit} bytes") };
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("is larger than {size}")));
    }
    Ok(content)
}

/// Opens a file of obsdiff's own to write to its end, made where there is none; `truncate` empties it first. Symbolic links are not followed.
///
/// # Errors
/// When it cannot be opened or made.
pub fn open_to_append(path: &Path, truncate: bool) -> io::Result<File> {
    let flags = OFlags::NOFOLLOW.bits() as i32;
    let file = OpenOptions::new().append(true).create(true).custom_flags(flags).open(path)?;
    if truncate {
        file.set_len(0)?;
    }
    Ok(file)
}

/// Bytes that are free for this user on the file system of a path.
///
/// # Errors
/// When the system does not answer.
pub fn free_bytes(path: &Path) -> io::Result<u64> {
    let space = rustix::fs::statvfs(path)?;
    Ok(space.f_bavail.saturating_mul(space.f_frsize))
}

/// Refuses all but regular files.
fn check(kind: FileType) -> io::Result<()> {
    if kind.is_file() {
        return Ok(());
    }
    let (error, found) = if kind.is_dir() {
        (io::ErrorKind::IsADirectory, "directory")
    } else if kind.is_fifo() {
        (io::ErrorKind::InvalidInput, "FIFO")
    } else if kind.is_socket() {
        (io::ErrorKind::InvalidInput, "socket")
    } else {
        (io::ErrorKind::InvalidInput, "device")
    };
    Err(io::Error::new(error, format!("is a {found}: give a regular file")))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    use rustix::fs::{CWD, FileType as Kind, Mode, mknodat};

    use super::*;

    fn said<T>(result: io::Result<T>) -> String {
        result.map(drop).unwrap_err().to_string()
    }

    #[test]
    fn only_regular_files_are_opened_and_nothing_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::write(path("file"), "content").unwrap();
        symlink(path("file"), path("link")).unwrap();
        for name in ["file", "link"] {
            assert_eq!(read_regular(&path(name), 7).unwrap(), b"content");
        }
        mknodat(CWD, path("pipe"), Kind::Fifo, Mode::RUSR, 0).unwrap();
        symlink(path("pipe"), path("link to pipe")).unwrap();
        let _listener = UnixListener::bind(path("socket")).unwrap();
        for (path, kind) in [
            (path("pipe"), "FIFO"),
            (path("link to pipe"), "FIFO"),
            (path("socket"), "socket"),
            (dir.path().to_owned(), "directory"),
            ("/dev/zero".into(), "device"),
        ] {
            assert_eq!(said(open_regular(&path)), format!("is a {kind}: give a regular file"));
            assert_eq!(said(read_regular(&path, 7)), format!("is a {kind}: give a regular file"));
        }
        let absent = open_regular(&path("absent")).unwrap_err();
        assert_eq!(absent.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_file_is_appended_to_or_truncated_and_never_through_a_link() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        for (truncate, text, expected) in [(false, "a", "a"), (false, "b", "ab"), (true, "c", "c")] {
            std::io::Write::write_all(&mut open_to_append(&path, truncate).unwrap(), text.as_bytes())
                .unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), expected);
        }
        symlink(&path, dir.path().join("link")).unwrap();
        assert!(open_to_append(&dir.path().join("link"), true).is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), "c");
    }

    #[test]
    fn a_file_past_the_limit_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        fs::write(&path, [0; 2048]).unwrap();
        assert_eq!(read_regular(&path, 2048).unwrap().len(), 2048);
        assert_eq!(said(read_regular(&path, 1024)), "is larger than 1024 bytes");
    }
}
