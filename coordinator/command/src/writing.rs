//! Files that commands write where a user wants them: tried before any work, and never seen half-written.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::path::Path;

use obsdiff_files::{Disk, parent_of};
use tempfile::NamedTempFile;

use crate::{Error, Result};

/// Tries, before any work, whether a file can be made in the folder that `path` is in, or in `path` itself where that is a folder. The file
/// that is made for it is gone at once. Where the file system can do without, it has no name, and not even a process that is killed
/// leaves it.
///
/// # Errors
/// What the system says, which names no file: the caller names the one that the user gave.
pub(crate) fn try_writing(path: &Path) -> io::Result<()> {
    // A link stays: what it leads to is replaced.
    let target = match path.canonicalize() {
        Err(error) if error.kind() == ErrorKind::NotFound => path.to_owned(),
        resolved => resolved?,
    };
    let folder = if target.is_dir() { &*target } else { parent_of(&target) };
    tempfile::tempfile_in(folder).map(drop)
}

/// A new file beside `path`, under a hidden name of which the end is given, until it is whole and takes the name of `path`.
///
/// # Errors
/// What the system says, which names no file: the hidden name would say nothing to a user.
pub(crate) fn unfinished_beside(path: &Path, end: &str) -> io::Result<NamedTempFile> {
    // `tempfile_in` would put the hidden name behind what the system says.
    tempfile::Builder::new()
        .prefix(".obsdiff-")
        .suffix(end)
        .make_in(parent_of(path), |hidden| File::create_new(hidden))
}

/// Brings a file that is whole to the disk and gives it the name `target`; errors name the `path` by which a user gave that. What is there
/// by then is replaced only where `may_replace` finds that it is obsdiff's own. So nothing else that appeared while the file was written is
/// lost.
///
/// # Errors
/// What `may_replace` says, or the system.
pub(crate) fn put_in_place(
    file: NamedTempFile,
    (path, target): (&Path, &Path),
    may_replace: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let failed = |e| Error::file(path, e);
    file.as_file().sync_all().map_err(failed)?;
    let disk = Disk::default();
    // Where it stays, it is removed when its hidden name is dropped.
    let hidden = file.into_temp_path();
    match disk.rename_new(&hidden, target) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            may_replace()?;
            disk.replace(&hidden, target).map_err(failed)
        }
        moved => moved.map_err(failed),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;

    use super::*;

    #[test]
    fn a_place_that_is_tried_is_left_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::create_dir(path("folder")).unwrap();
        fs::write(path("file"), "mine").unwrap();
        std::os::unix::fs::symlink("folder", path("link")).unwrap();
        for place in ["new", "folder", "folder/new", "file", "link", "link/new"] {
            try_writing(&path(place)).unwrap();
        }
        assert_eq!(fs::read_to_string(path("file")).unwrap(), "mine");
        assert_eq!(fs::read_dir(path("folder")).unwrap().count(), 0);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3);
    }

    #[test]
    fn what_the_system_says_of_a_place_is_not_about_another_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::write(path("file"), "").unwrap();
        for (place, error) in [
            ("absent/new", libc::ENOENT),
            ("file/new", libc::ENOTDIR),
            (&*"n".repeat(300), libc::ENAMETOOLONG),
        ] {
            assert_eq!(try_writing(&path(place)).unwrap_err().raw_os_error(), Some(error), "{place}");
        }
        let absent = unfinished_beside(&path("absent/new"), ".png").unwrap_err();
        assert_eq!(absent.raw_os_error(), Some(libc::ENOENT));
    }
    #[test]
    fn what_appears_while_a_file_is_written_is_replaced_only_where_it_may_be() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let whole = |text: &str| {
            let mut file = unfinished_beside(&path, ".txt").unwrap();
            file.as_file_mut().write_all(text.as_bytes()).unwrap();
            file
        };
        let left = || fs::read_dir(dir.path()).unwrap().count();
        put_in_place(whole("first"), (&path, &path), || Err(Error::content("file", "is not there"))).unwrap();
        assert_eq!((&*fs::read_to_string(&path).unwrap(), left()), ("first", 1));
        let error = put_in_place(whole("second"), (&path, &path), || Err(Error::content("file", "is mine")));
        assert_eq!(error.unwrap_err().line(), "file: is mine");
        assert_eq!((&*fs::read_to_string(&path).unwrap(), left()), ("first", 1));
        put_in_place(whole("second"), (&path, &path), || Ok(())).unwrap();
        assert_eq!((&*fs::read_to_string(&path).unwrap(), left()), ("second", 1));
    }
}
