//! The coordinator of a job that is done, started again: it has nothing to decide, but workers may still look for it.

use std::time::Duration;

use obsdiff_core::{Dismissal, Outcome};
use tokio::sync::mpsc::{Receiver, channel};
use tokio::time::timeout;

use crate::clock::Clock;
use crate::{Handle, INBOX, Message};

/// Stands in for the driver of a job that is done.
pub struct DoneJob {
    clock: Clock,
    inbox: Receiver<Message>,
}

impl DoneJob {
    /// One, and the handle by which sessions reach it.
    pub fn new(clock: Clock) -> (Self, Handle) {
        let (sender, inbox) = channel(INBOX);
        (Self { clock, inbox }, Handle(sender))
    }

    /// For this time, or until it is stopped, tells each worker that connects that the job is done. Whoever asks for the state of the job
    /// gets none.
    pub async fn linger(mut self, most: Duration) {
        let end = (self.clock)() + most;
        while let Some(left) = end.checked_sub((self.clock)()) {
            match timeout(left, self.inbox.recv()).await {
                Ok(None | Some(Message::Stop)) | Err(_) => return,
                Ok(Some(Message::Join(_, downlink))) => downlink.dismiss(Dismissal::Over(Outcome::Done)),
                Ok(Some(_)) => {}
            }
        }
    }
}
