//! Counts what a worker sends to be summed.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{Abort, Buffer, Collective, Member, Result, Transport, Values};

/// Joins the groups of another transport, and counts the bytes that this worker gives to their reductions.
pub struct Counted {
    inner: Arc<dyn Transport>,
    bytes: Arc<AtomicU64>,
}

impl Counted {
    /// Counts in `bytes` what goes through `inner`.
    pub fn new(inner: Arc<dyn Transport>, bytes: Arc<AtomicU64>) -> Self {
        Self { inner, bytes }
    }
}

impl Transport for Counted {
    fn join(&self, member: Member, abort: &Abort) -> Result<Box<dyn Collective>> {
        let inner = self.inner.join(member, abort)?;
        Ok(Box::new(CountedGroup { inner, bytes: self.bytes.clone() }))
    }

    fn start(&self, joining: Box<dyn FnOnce() + Send>) -> Result<()> {
        self.inner.start(joining)
    }
}

struct CountedGroup {
    inner: Box<dyn Collective>,
    bytes: Arc<AtomicU64>,
}

impl CountedGroup {
    /// Counts numbers that were sent.
    fn count(&self, sent: u64) {
        self.bytes.fetch_add(sent, Ordering::Relaxed);
    }
}

impl Collective for CountedGroup {
    fn member(&self) -> &Member {
        self.inner.member()
    }

    fn gpu(&self) -> Option<usize> {
        self.inner.gpu()
    }

    fn piece(&self) -> usize {
        self.inner.piece()
    }

    fn all_reduce(&mut self, send: Values<'_>, receive: Buffer<'_>) -> Result<()> {
        self.inner.all_reduce(send, receive)?;
        self.count(send.bytes());
        Ok(())
    }

    fn reduce(&mut self, root: usize, send: Values<'_>, receive: Option<Buffer<'_>>) -> Result<()> {
        self.inner.reduce(root, send, receive)?;
        self.count(send.bytes());
        Ok(())
    }

    fn broadcast(&mut self, root: usize, buffer: Buffer<'_>) -> Result<()> {
        self.inner.broadcast(root, buffer)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use obsdiff_proto::Epoch;

    use super::*;
    use crate::collective::Local;

    #[test]
    fn what_is_summed_is_counted_and_comes_out_as_before() {
        let bytes = Arc::new(AtomicU64::new(0));
        let transport = Counted::new(Arc::new(Local::default()), bytes.clone());
        let second = Duration::from_secs(1);
        let member = Member { epoch: Epoch(1), rank: 0, world: 1, form: second, silence: second };
        let mut group = transport.join(member, &Abort::default()).unwrap();
        let (mut whole, mut floats) = ([0; 3], [0.0]);
        group.all_reduce(Values::I64(&[1, 2, 3]), Buffer::I64(&mut whole)).unwrap();
        group.reduce(0, Values::F32(&[0.5]), Some(Buffer::F32(&mut floats))).unwrap();
        group.broadcast(0, Buffer::I64(&mut whole)).unwrap();
        assert_eq!((whole, floats, group.world()), ([1, 2, 3], [0.5], 1));
        assert_eq!(bytes.load(Ordering::Relaxed), 3 * 8 + 4);
        assert!(group.all_reduce(Values::I64(&[1]), Buffer::I64(&mut [0, 0])).is_err());
        assert_eq!(bytes.load(Ordering::Relaxed), 28, "what failed is not counted");
    }
}
