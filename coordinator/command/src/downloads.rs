//! Downloads of models, shown as other parts of the work are.

use std::fmt;
use std::sync::{Mutex, Once};

use obsdiff_proto::lock;
use obsdiff_worker::stored_model::FetchEvent;

use crate::progress::{PhaseProgress, Progress};

/// The bytes of a unit that is counted.
const UNIT: u64 = 1 << 20;

/// Shows what happens while a model is fetched.
pub(crate) struct Downloads {
    progress: Progress,
    open: Mutex<Option<OpenDownload>>,
    told_left_out: Once,
}

struct OpenDownload {
    phase: PhaseProgress,
    bytes: u64,
    done: u64,
}

impl fmt::Debug for Downloads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Downloads(..)")
    }
}

impl Downloads {
    pub(crate) fn new(progress: Progress) -> Self {
        Self { progress, open: Mutex::default(), told_left_out: Once::new() }
    }

    /// Says once of which weights of a model its output has no copy.
    pub(crate) fn tell_left_out(&self, url: &str, names: &[&str]) {
        let [first, others @ ..] = names else { return };
        let more = if others.is_empty() { String::new() } else { format!(" and {} more", others.len()) };
        self.told_left_out.call_once(|| {
            self.progress.note(&format!(
                "the output has no copy of pickled weights and variants of {url}, which are never read: {first}{more}"
            ));
        });
    }

    /// Shows one event.
    pub(crate) fn show(&self, event: FetchEvent<'_>) {
        let mut open = lock(&self.open);
        match event {
            FetchEvent::Waits(owner) => {
                self.progress.note(&format!("waits for the download of the same model by {owner}"));
            }
            FetchEvent::Begins(bytes) => {
                // Headers are few and small.
                *open = (bytes > 0).then(|| {
                    let phase = self.progress.phase("download the model", "MiB", bytes.div_ceil(UNIT));
                    OpenDownload { phase, bytes, done: 0 }
                });
            }
            FetchEvent::Done(bytes) => {
                if let Some(open) = &mut *open {
                    open.done += bytes;
                    open.phase.reach(open.done as f64 / open.bytes as f64);
                }
            }
            FetchEvent::Alive => {
                self.progress.alive();
                if let Some(open) = &*open {
                    open.phase.tell_if_due();
                }
            }
            FetchEvent::Ends => {
                if let Some(open) = open.take() {
                    open.phase.finish();
                }
            }
        }
    }
}
