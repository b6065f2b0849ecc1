//! A directory written beside its destination and moved into place when it is whole.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::file_name;
use crate::{Error, Result};

/// Deeper trees than this are not pipelines.
const MAX_DEPTH: usize = 8;

/// How the names of half-written directories end.
const PARTIAL: &str = ".partial";

/// The directory being written; removed when dropped before [`Staging::commit`].
pub(super) struct Staging {
    path: PathBuf,
}

impl Staging {
    /// Creates `.NAME.SOMETHING.partial` beside the destination `NAME`. No other writer's is called so: one that was cut off may still
    /// be writing while another one takes its place. What such ones have left is removed.
    pub(super) fn create(destination: &Path) -> Result<Self> {
        refuse_existing(destination)?;
        let parent = parent_of(destination);
        fs::create_dir_all(parent).map_err(|e| Error::file(parent, e))?;
        let prefix = format!(".{}.", file_name(destination));
        remove_left(parent, &prefix).map_err(|e| Error::file(parent, e))?;
        let directory = tempfile::Builder::new()
            .prefix(&prefix)
            .suffix(PARTIAL)
            .permissions(fs::Permissions::from_mode(0o777))
            .tempdir_in(parent)
            .map_err(|e| Error::file(parent, e))?;
        Ok(Self { path: directory.keep() })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Writes a small file.
    pub(super) fn write(&self, name: &str, content: &[u8]) -> Result<()> {
        let path = self.path.join(name);
        let mut file = fs::File::create_new(&path).map_err(|e| Error::file(&path, e))?;
        file.write_all(content).and_then(|()| file.sync_all()).map_err(|e| Error::file(&path, e))
    }

    /// Copies a file, or hard-links it where asked and possible.
    pub(super) fn copy_file(&self, from: &Path, name: &str, link: bool) -> Result<()> {
        let to = self.path.join(name);
        // A symbolic link into a download cache is read through: a hard link to it would be a link to a link.
        if link && !from.is_symlink() && fs::hard_link(from, &to).is_ok() {
            return Ok(());
        }
        fs::copy(from, &to).map_err(|e| Error::file(from, e))?;
        Ok(())
    }

    /// Copies those files of a folder, and of the folders in it, whose names `keep` approves.
    pub(super) fn copy_folder(
        &self,
        from: &Path,
        name: &str,
        link: bool,
        keep: &dyn Fn(&str) -> bool,
    ) -> Result<()> {
        if Path::new(name).components().count() > MAX_DEPTH {
            return Err(Error::content(from, format!("lies more than {MAX_DEPTH} folders deep")));
        }
        let to = self.path.join(name);
        fs::create_dir(&to).map_err(|e| Error::file(&to, e))?;
        for entry in fs::read_dir(from).map_err(|e| Error::file(from, e))? {
            let path = entry.map_err(|e| Error::file(from, e))?.path();
            let file = file_name(&path);
            if path.is_dir() {
                self.copy_folder(&path, &format!("{name}/{file}"), link, keep)?;
            } else if keep(&file) {
                self.copy_file(&path, &format!("{name}/{file}"), link)?;
            }
        }
        Ok(())
    }

    /// Moves the directory to its destination.
    pub(super) fn commit(self, destination: &Path) -> Result<()> {
        refuse_existing(destination)?;
        fs::rename(&self.path, destination).map_err(|e| Error::file(destination, e))?;
        let parent = parent_of(destination);
        fs::File::open(parent).and_then(|folder| folder.sync_all()).map_err(|e| Error::file(parent, e))
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // After a commit there is nothing left to remove; after a failure that failure is what is reported.
        if let Err(e) = fs::remove_dir_all(&self.path)
            && e.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(path = %self.path.display(), error = %e, "a half-written directory could not be removed");
        }
    }
}

/// Removes the half-written directories of earlier writers.
fn remove_left(parent: &Path, prefix: &str) -> io::Result<()> {
    for entry in fs::read_dir(parent)? {
        let path = entry?.path();
        let name = file_name(&path);
        if name.starts_with(prefix)
            && name.ends_with(PARTIAL)
            && path.is_dir()
            && let Err(error) = fs::remove_dir_all(&path)
        {
            // Where somebody still writes, it is only in the way of others' room.
            tracing::warn!(path = %path.display(), %error, "a half-written directory could not be removed");
        }
    }
    Ok(())
}

fn refuse_existing(destination: &Path) -> Result<()> {
    match destination.symlink_metadata() {
        Ok(_) => {
            Err(Error::content(destination, "exists already: choose another output.path, or move it away"))
        }
        Err(_) => Ok(()),
    }
}

fn parent_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Whether a file holds weights, or names the shards that do.
pub(super) fn is_weights(file: &str) -> bool {
    [".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".msgpack", ".onnx"]
        .iter()
        .any(|end| file.ends_with(end))
        || file.ends_with(".safetensors.index.json")
        || file.ends_with(".bin.index.json")
}

/// Bytes that an export of the pipeline in `source` takes at most: everything in its folders.
///
/// # Errors
/// When a folder cannot be read.
pub fn required_bytes(source: &Path) -> Result<u64> {
    let mut total = 0;
    let parts = super::pipeline_parts(source)?;
    let mut open: Vec<(PathBuf, usize)> = parts.iter().map(|part| (source.join(part), 0)).collect();
    while let Some((path, depth)) = open.pop() {
        if !path.is_dir() {
            total += path.metadata().map_err(|e| Error::file(&path, e))?.len();
        } else if depth <= MAX_DEPTH {
            for entry in fs::read_dir(&path).map_err(|e| Error::file(&path, e))? {
                open.push((entry.map_err(|e| Error::file(&path, e))?.path(), depth + 1));
            }
        }
    }
    Ok(total)
}
