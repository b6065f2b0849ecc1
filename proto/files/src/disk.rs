//! Changes of files and folders, each of which can be watched, made to fail or cut short.

use std::ffi::OsStr;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, CWD, Dir, Mode, OFlags, RenameFlags, openat, renameat_with, unlinkat};
use rustix::io::Errno;

/// An operation on a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// A folder is made.
    CreateFolder,
    /// A file is made, empty.
    CreateFile,
    /// A file that was made is filled.
    Write,
    /// A second name is given to a file.
    Link,
    /// A file's content is brought to the disk.
    SyncFile,
    /// A folder's entries are brought to the disk.
    SyncFolder,
    /// A folder or a file gets this name.
    Rename,
    /// A file is removed.
    RemoveFile,
    /// An empty folder is removed.
    RemoveFolder,
}

/// Called before each file operation. Tests use it to end the process, or to make an operation fail.
pub trait OperationHook: Send + Sync {
    /// Called before each operation.
    ///
    /// # Errors
    /// The operation then fails with this error, and nothing is done.
    fn before(&self, operation: Operation, path: &Path) -> io::Result<()>;
}

/// Changes files and folders.
#[derive(Clone, Default)]
pub struct Disk {
    hook: Option<Arc<dyn OperationHook>>,
    on_progress: Option<Arc<OnProgress>>,
}

/// Is called before each operation, and after each chunk of a file that is copied.
pub type OnProgress = dyn Fn() + Send + Sync;

/// Bytes of a file that are copied and brought to the disk at a time: on a slow one it takes seconds, not minutes.
const CHUNK: u64 = 64 << 20;

/// How often folders are begun while other processes remove them.
const FOLDER_TRIES: u32 = 100;

impl fmt::Debug for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Disk").field("hooked", &self.hook.is_some()).finish()
    }
}

/// Every method's errors are those of the system, or of [`OperationHook::before`].
#[allow(clippy::missing_errors_doc)]
impl Disk {
    /// A disk that reports each operation to `hook` before it.
    pub fn with_hook(hook: Arc<dyn OperationHook>) -> Self {
        Self { hook: Some(hook), on_progress: None }
    }

    /// The same disk, which calls `on_progress` while it works.
    pub fn with_progress(&self, on_progress: Arc<OnProgress>) -> Self {
        Self { on_progress: Some(on_progress), ..self.clone() }
    }

    fn progress(&self) {
        if let Some(on_progress) = &self.on_progress {
            on_progress();
        }
    }

    fn before(&self, operation: Operation, path: &Path) -> io::Result<()> {
        self.progress();
        self.hook.as_ref().map_or(Ok(()), |hook| hook.before(operation, path))
    }

    /// Makes a folder that does not exist yet.
    pub fn create_folder(&self, path: &Path) -> io::Result<()> {
        self.before(Operation::CreateFolder, path)?;
        fs::create_dir(path)
    }

    /// Makes a folder with those above it, and gives those that were made, the outermost first. After an error none is left.
    pub fn create_folders(&self, path: &Path) -> io::Result<Vec<PathBuf>> {
        // Where another process removes one of them, still empty, the next cannot be made in it, or is neither new nor there.
        let is_removal = |e: &io::Error| matches!(e.kind(), ErrorKind::NotFound | ErrorKind::AlreadyExists);
        let mut tries = 1..FOLDER_TRIES;
        loop {
            match self.try_to_create_folders(path) {
                Err(error) if is_removal(&error) && tries.next().is_some() => {}
                outcome => return outcome,
            }
        }
    }

    fn try_to_create_folders(&self, path: &Path) -> io::Result<Vec<PathBuf>> {
        let exists = |path: &&Path| !path.as_os_str().is_empty() && !path.is_dir();
        let mut missing: Vec<&Path> = path.ancestors().take_while(exists).collect();
        missing.reverse();
        let mut made = Vec::new();
        for folder in missing {
            let outcome = match self.create_folder(folder) {
                // Another process made it in the meantime.
                Err(error) if error.kind() == ErrorKind::AlreadyExists && folder.is_dir() => continue,
                outcome => outcome,
            };
            if let Err(error) = outcome {
                self.remove_folders(&made);
                return Err(error);
            }
            made.push(folder.to_owned());
        }
        let synced = made.iter().try_for_each(|folder| self.sync_folder(parent_of(folder)));
        match synced {
            Ok(()) => Ok(made),
            Err(error) => {
                self.remove_folders(&made);
                Err(error)
            }
        }
    }

    /// Removes folders that were made, the innermost first, as far as they are there and empty.
    pub fn remove_folders(&self, made: &[PathBuf]) {
        for folder in made.iter().rev() {
            match self.remove_folder(folder) {
                Err(error) if error.kind() != ErrorKind::NotFound => return,
                _ => {}
            }
        }
    }

    /// Makes a file that does not exist yet.
    pub fn create_file(&self, path: &Path) -> io::Result<File> {
        self.before(Operation::CreateFile, path)?;
        let file = File::create_new(path)?;
        self.before(Operation::Write, path)?;
        Ok(file)
    }

    /// Makes a file of this content, and brings it to the disk.
    pub fn write(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        let mut file = self.create_file(path)?;
        file.write_all(content)?;
        self.sync_file(&file, path)
    }

    /// Copies a file to a name that does not exist yet, with its permissions, and brings the copy to the disk.
    pub fn copy(&self, source: &File, to: &Path) -> io::Result<()> {
        let mut copy = self.create_file(to)?;
        while io::copy(&mut source.take(CHUNK), &mut copy)? == CHUNK {
            copy.sync_data()?;
            self.progress();
        }
        copy.set_permissions(source.metadata()?.permissions())?;
        self.sync_file(&copy, to)
    }

    /// Gives a file a second name, and brings its content to the disk.
    pub fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.before(Operation::Link, to)?;
        fs::hard_link(from, to)?;
        self.sync_file(&File::open(to)?, to)
    }

    /// Brings a file's content to the disk.
    pub fn sync_file(&self, file: &File, path: &Path) -> io::Result<()> {
        self.before(Operation::SyncFile, path)?;
        file.sync_all()
    }

    /// Brings a folder's entries to the disk.
    pub fn sync_folder(&self, path: &Path) -> io::Result<()> {
        self.before(Operation::SyncFolder, path)?;
        File::open(path)?.sync_all()
    }

    /// Moves a file or a folder to a name that does not exist yet.
    pub fn rename_new(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.before(Operation::Rename, to)?;
        match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
            // Some file systems, such as NFS, cannot refuse by themselves.
            Err(Errno::INVAL | Errno::NOSYS) => {
                if to.symlink_metadata().is_ok() {
                    return Err(ErrorKind::AlreadyExists.into());
                }
                fs::rename(from, to)
            }
            renamed => Ok(renamed?),
        }
    }

    /// Moves a file to the name of another one, which it replaces.
    pub fn replace(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.before(Operation::Rename, to)?;
        fs::rename(from, to)
    }

    /// Removes a file.
    pub fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.before(Operation::RemoveFile, path)?;
        fs::remove_file(path)
    }

    /// Removes an empty folder.
    pub fn remove_folder(&self, path: &Path) -> io::Result<()> {
        self.before(Operation::RemoveFolder, path)?;
        fs::remove_dir(path)
    }

    /// Removes a folder with all in it, one file after another. Symbolic links in it are removed, not followed, and one in its place is
    /// refused, at whatever moment they appear. Only for a folder that is known to be obsdiff's, by its marker.
    pub fn remove_tree(&self, path: &Path) -> io::Result<()> {
        // With a slash behind it a link would be followed.
        let path: PathBuf = path.components().collect();
        self.empty(&open_folder(CWD, &path)?, &path)?;
        self.remove_folder(&path)
    }

    /// Removes all that is in an open folder, whose path is told to the hook.
    fn empty(&self, folder: &OwnedFd, path: &Path) -> io::Result<()> {
        let entries = Dir::read_from(folder)?.map(|entry| Ok(entry?.file_name().to_owned()));
        for name in entries.collect::<io::Result<Vec<_>>>()? {
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let inner = path.join(OsStr::from_bytes(name.to_bytes()));
            match open_folder(folder, &name) {
                Ok(opened) => {
                    self.empty(&opened, &inner)?;
                    self.before(Operation::RemoveFolder, &inner)?;
                    unlinkat(folder, &name, AtFlags::REMOVEDIR)?;
                }
                // Any other file, or a link to whatever.
                Err(Errno::NOTDIR | Errno::LOOP) => {
                    self.before(Operation::RemoveFile, &inner)?;
                    unlinkat(folder, &name, AtFlags::empty())?;
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

/// Opens a folder in another one, without following a link.
fn open_folder<P: rustix::path::Arg>(parent: impl AsFd, name: P) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::RDONLY | OFlags::CLOEXEC;
    openat(parent, name, flags, Mode::empty())
}

/// The folder that a path lies in: `.` where the path is a mere name.
pub fn parent_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[derive(Default)]
    struct Log(Mutex<Vec<Operation>>);

    impl OperationHook for Log {
        fn before(&self, operation: Operation, _: &Path) -> io::Result<()> {
            self.0.lock().unwrap().push(operation);
            Ok(())
        }
    }

    #[test]
    fn a_rename_never_replaces_what_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let [from, to] = ["from", "to"].map(|name| folder.path().join(name));
        let disk = Disk::default();
        disk.create_folder(&from).unwrap();
        // The system's own rename would replace an empty folder.
        fs::create_dir(&to).unwrap();
        assert_eq!(disk.rename_new(&from, &to).unwrap_err().kind(), ErrorKind::AlreadyExists);
        fs::remove_dir(&to).unwrap();
        disk.rename_new(&from, &to).unwrap();
        assert!(to.is_dir() && !from.exists());
    }

    #[test]
    fn copies_and_links_are_synced_and_keep_permissions() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::write(path("a"), "content").unwrap();
        fs::set_permissions(path("a"), fs::Permissions::from_mode(0o640)).unwrap();
        let log = Arc::new(Log::default());
        let disk = Disk::with_hook(log.clone());
        let source = File::open(path("a")).unwrap();
        disk.copy(&source, &path("b")).unwrap();
        disk.link(&path("a"), &path("c")).unwrap();
        use Operation::{CreateFile, Link, SyncFile, Write};
        assert_eq!(*log.0.lock().unwrap(), [CreateFile, Write, SyncFile, Link, SyncFile]);
        assert_eq!(fs::read_to_string(path("b")).unwrap(), "content");
        assert_eq!(fs::metadata(path("b")).unwrap().permissions().mode() & 0o777, 0o640);
        assert_eq!(disk.copy(&source, &path("b")).unwrap_err().kind(), ErrorKind::AlreadyExists);
    }

    #[test]
    fn a_copy_of_a_large_file_reports_that_it_advances() {
        use std::sync::atomic::{AtomicU64, Ordering};
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        // A hole: it is written as zeros.
        File::create(path("a")).unwrap().set_len(2 * CHUNK + 1).unwrap();
        let said = Arc::new(AtomicU64::new(0));
        let counted = said.clone();
        let on_progress: Arc<OnProgress> = Arc::new(move || {
            counted.fetch_add(1, Ordering::SeqCst);
        });
        let disk = Disk::default().with_progress(on_progress);
        disk.copy(&File::open(path("a")).unwrap(), &path("b")).unwrap();
        assert_eq!(fs::metadata(path("b")).unwrap().len(), 2 * CHUNK + 1);
        // Its creation, two chunks, and its way to the disk.
        assert!(said.load(Ordering::SeqCst) >= 4, "{said:?}");
    }

    #[test]
    fn folders_that_could_not_all_be_made_are_not_left() {
        let folder = tempfile::tempdir().unwrap();
        let deep = folder.path().join("a/b").join("n".repeat(300));
        assert!(Disk::default().create_folders(&deep).is_err());
        assert!(!folder.path().join("a").exists());
        let made = Disk::default().create_folders(&folder.path().join("a/b")).unwrap();
        assert_eq!(made, [folder.path().join("a"), folder.path().join("a/b")]);
        fs::write(folder.path().join("a/kept"), "").unwrap();
        Disk::default().remove_folders(&made);
        assert!(folder.path().join("a/kept").exists() && !folder.path().join("a/b").exists());
        fs::remove_file(folder.path().join("a/kept")).unwrap();
        Disk::default().remove_folders(&made);
        assert!(!folder.path().join("a").exists(), "somebody else has removed the one in it");
    }

    #[test]
    fn a_tree_is_removed_without_following_links() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::create_dir_all(path("tree/deep")).unwrap();
        fs::create_dir(path("others")).unwrap();
        fs::write(path("others/file"), "").unwrap();
        std::os::unix::fs::symlink(path("others"), path("tree/deep/link")).unwrap();
        std::os::unix::fs::symlink(path("others/file"), path("tree/link to a file")).unwrap();
        fs::write(path("tree/deep/file"), "").unwrap();
        // A link in the tree's own place leads to what is somebody else's.
        std::os::unix::fs::symlink(path("others"), path("link")).unwrap();
        for place in ["link", "link/"] {
            assert!(Disk::default().remove_tree(&path(place)).is_err(), "{place}");
        }
        Disk::default().remove_tree(&path("tree")).unwrap();
        assert!(path("others/file").exists() && !path("tree").exists());
    }
}
