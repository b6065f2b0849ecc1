//! A cable that takes its time and loses frames, by a seed: what `tc netem` does, on every kernel.

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use obsdiff_tests::{Prng, not_tested};
use tun_rs::{DeviceBuilder, InterruptEvent, Layer, SyncDevice};

use crate::hosts::{Host, Network};

/// Whether this machine has cards whose frames a process carries; says so where it has none.
#[track_caller]
pub(crate) fn available() -> bool {
    let there = Path::new("/dev/net/tun").exists();
    if !there {
        not_tested("this test needs /dev/net/tun");
    }
    there
}

/// Carries the frames between a host's `eth0` and its port until it is dropped.
pub(crate) struct Cable {
    stop: Arc<InterruptEvent>,
    ways: Vec<JoinHandle<()>>,
}

/// How a cable is in each direction.
#[derive(Clone, Copy)]
pub(crate) struct Quality {
    /// How long a frame is on its way.
    pub(crate) delay: Duration,
    /// How many of a hundred frames are lost.
    pub(crate) loss: u64,
}

impl Cable {
    /// Plugs one more host into a network, by a cable.
    pub(crate) fn add(network: &mut Network, quality: Quality, seed: u64) -> Self {
        let host = Host::new();
        let near = Arc::new(card(&host, "eth0"));
        let far = Arc::new(card(network.switch(), &format!("port{}", network.hosts())));
        network.adopt(host);
        let stop = Arc::new(InterruptEvent::new().unwrap());
        let way = |from: &Arc<SyncDevice>, to: &Arc<SyncDevice>, seed| {
            let (from, to, stop, prng) = (from.clone(), to.clone(), stop.clone(), Prng::new(seed));
            thread::spawn(move || carry(&from, &to, quality, prng, &stop))
        };
        let ways = vec![way(&near, &far, seed), way(&far, &near, !seed)];
        Self { stop, ways }
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        self.stop.trigger().unwrap();
        self.ways.drain(..).for_each(|way| way.join().unwrap());
    }
}

/// A network card of a host whose frames are here.
fn card(host: &Host, name: &str) -> SyncDevice {
    let card = || DeviceBuilder::new().name(name).layer(Layer::L2).enable(false).build_sync();
    host.within(card).unwrap_or_else(|error| panic!("no card {name}: {error}"))
}

/// Carries frames one way.
fn carry(from: &SyncDevice, to: &SyncDevice, quality: Quality, mut prng: Prng, stop: &InterruptEvent) {
    let mut under_way: VecDeque<(Instant, Vec<u8>)> = VecDeque::new();
    let mut frame = vec![0; 1 << 16];
    loop {
        while under_way.front().is_some_and(|(due, _)| *due <= Instant::now()) {
            let (_, frame) = under_way.pop_front().unwrap();
            // A card that is down, or gone, takes nothing: that frame is lost too.
            let _ = to.send(&frame);
        }
        let wait = under_way.front().map(|(due, _)| due.saturating_duration_since(Instant::now()));
        match from.recv_intr_timeout(&mut frame, stop, wait) {
            Ok(_) if prng.percent(quality.loss) => {}
            Ok(bytes) => under_way.push_back((Instant::now() + quality.delay, frame[..bytes].to_vec())),
            Err(error) if error.kind() == ErrorKind::TimedOut || error.kind() == ErrorKind::WouldBlock => {}
            // Told to stop, or the host is gone.
            Err(_) => return,
        }
    }
}
