//! Where a path leads, and whether two of them overlap.

use std::io;
use std::path::{Component, Path, PathBuf};

/// A path as the system finds it, whether or not something is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolvedPath(PathBuf);

/// How two paths lie to each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overlap {
    /// Both are the same.
    Same,
    /// The first lies in the other one.
    Inside,
    /// The other one lies in it.
    Around,
}

impl ResolvedPath {
    /// Follows symbolic links as far as the path exists; the rest is taken as it is written.
    ///
    /// # Errors
    /// When the path is empty, or the current folder of this process no longer exists.
    pub fn of(path: &Path) -> io::Result<Self> {
        let absolute = std::path::absolute(path)?;
        let found = absolute.ancestors().find_map(|start| Some((start, start.canonicalize().ok()?)));
        let (start, mut real) = found.unwrap_or((Path::new("/"), PathBuf::from("/")));
        for component in absolute.strip_prefix(start).unwrap_or(Path::new("")).components() {
            match component {
                Component::ParentDir => drop(real.pop()),
                Component::Normal(name) => real.push(name),
                Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
            }
        }
        Ok(Self(real))
    }

    /// Its path, absolute and without symbolic links.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// How it overlaps with another one, if it does.
    pub fn overlap(&self, other: &Self) -> Option<Overlap> {
        match (self.0.starts_with(&other.0), other.0.starts_with(&self.0)) {
            (true, true) => Some(Overlap::Same),
            (true, false) => Some(Overlap::Inside),
            (false, true) => Some(Overlap::Around),
            (false, false) => None,
        }
    }
}

/// Whether a path starts with `~`, which a shell alone replaces by a home folder.
pub fn starts_with_tilde(path: &str) -> bool {
    path.starts_with('~')
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn places_overlap_through_links_and_where_nothing_is_yet() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        std::fs::create_dir_all(path("model/vae")).unwrap();
        symlink(path("model"), path("link")).unwrap();
        let overlap = |a: &str, b: &str| {
            ResolvedPath::of(&path(a)).unwrap().overlap(&ResolvedPath::of(&path(b)).unwrap())
        };
        assert_eq!(overlap("model", "link"), Some(Overlap::Same));
        assert_eq!(overlap("link/new/out", "model"), Some(Overlap::Inside));
        assert_eq!(overlap("model/vae/../new", "link"), Some(Overlap::Inside));
        assert_eq!(overlap("model/../new", "model"), None);
        assert_eq!(overlap("new", "new/deep"), Some(Overlap::Around));
        assert_eq!(overlap("new/../model/x", "model"), Some(Overlap::Inside));
        assert_eq!(overlap("model.state", "model"), None, "a name that only begins the same way");
        assert!(ResolvedPath::of(Path::new("")).is_err());
    }
}
