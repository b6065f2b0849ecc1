//! Files and folders: those that a user names, and those that obsdiff owns.
//!
//! Files that a user names are only read: [`open_regular`] opens regular files and nothing else. obsdiff changes and removes only what
//! it has written. [`in_hole`] finds the part of a file that was never written. [`Disk`] makes every change of an export or of a job's state, one file
//! operation after another, and syncs what has to outlive a power cut. [`Lock`] shows whether the process that holds it is still running.
//! [`InUse`] keeps others from removing what a process reads. [`ResolvedPath`] finds whether two paths overlap.

mod disk;
mod hole;
mod in_use;
mod lock;
mod open;
mod resolved_path;

pub use disk::{Disk, OnProgress, Operation, OperationHook, parent_of};
pub use hole::in_hole;
pub use in_use::{InUse, Unused};
pub use lock::{Lock, LockError, Owner};
pub use open::{free_bytes, open_regular, open_to_append, read_regular};
pub use resolved_path::{Overlap, ResolvedPath, starts_with_tilde};
