//! Whether a process may write an output, seen before any work.

use serde::{Deserialize, Serialize};

use super::{OutputStore, PutOutcome, Result, StoreError};

/// What is put below the prefix of an output and removed at once.
pub(super) const PROBE: &str = "obsdiff-probe.json";

/// Its content.
#[derive(Debug, Serialize, Deserialize)]
struct ProbeObject {
    /// An explanation for people who find it.
    holds: String,
}

impl OutputStore {
    /// Puts a small object and removes it, as a job does with its output and the marker. One that a process has left which was killed
    /// here is removed, too.
    ///
    /// # Errors
    /// When this process lacks a right, the store fails, or another object has that name.
    pub async fn try_writing(&self) -> Result<()> {
        let store = self.objects();
        let probe = ProbeObject { holds: "nothing: obsdiff has tried whether it may write here".to_owned() };
        if store.put_sealed_new(PROBE, &probe).await? == PutOutcome::Present {
            // Another process tries the same, or was killed; an object that does not read as one is none of obsdiff's.
            match store.sealed_if_any::<ProbeObject>(PROBE).await {
                Err(StoreError::Damaged { .. } | StoreError::Format { .. }) => {
                    return Err(self.foreign(PROBE));
                }
                read => read?,
            };
            store.put_sealed(PROBE, &probe).await?;
        }
        store.delete(PROBE).await
    }
}
