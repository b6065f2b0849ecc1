//! Tasks in phases. A phase needs all results of the phase before it; threads stay awake in between.
//!
//! With a parallel loop for each phase, threads without a task would fall asleep at its end. Waking them takes longer than a short phase
//! lasts.

use std::hint::spin_loop;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError, RwLock};
use std::thread;

use obsdiff_proto::lock;

/// How often a waiting thread reads the counter before it yields its processor.
const READS_BEFORE_YIELD: u32 = 64;

/// Calls `work` with each phase and each item. Between two phases it calls `between` with the phase that has ended and all items, and
/// passes the result to the tasks of the next phase; tasks of the first phase get `first`.
///
/// A thread takes the same items in each phase, as long as the others keep up. Neither function may enter the thread pool: a
/// thread that waits there for others could begin to wait for itself.
pub(super) fn in_phases<I: Send, T: Copy + Send + Sync>(
    items: &mut [I],
    phases: usize,
    first: T,
    work: impl Fn(usize, usize, &mut I, T) + Sync,
    between: impl FnMut(usize, &[&mut I]) -> T + Send,
) {
    let threads = rayon::current_num_threads().min(items.len());
    let items = items.iter_mut().map(|item| Item { phases: AtomicUsize::new(0), value: Mutex::new(item) });
    let run = PhasedRun {
        items: items.collect(),
        phases,
        ended: AtomicUsize::new(0),
        open: AtomicUsize::new(0),
        passed: RwLock::new(first),
        work,
        between: Mutex::new(between),
    };
    let run = &run;
    rayon::scope(|scope| {
        (1..threads).for_each(|thread| scope.spawn(move |_| run.run(thread * run.items.len() / threads)));
        if threads > 0 {
            run.run(0);
        }
    });
}

struct Item<'a, I> {
    /// Phases in which it was taken.
    phases: AtomicUsize,
    value: Mutex<&'a mut I>,
}

struct PhasedRun<'a, I, T, W, B> {
    items: Vec<Item<'a, I>>,
    phases: usize,
    /// Tasks of all phases that have ended.
    ended: AtomicUsize,
    /// The phase whose tasks may be taken.
    open: AtomicUsize,
    /// What tasks of the open phase get from the phase before.
    passed: RwLock<T>,
    work: W,
    between: Mutex<B>,
}

impl<I, T: Copy, W: Fn(usize, usize, &mut I, T), B: FnMut(usize, &[&mut I]) -> T> PhasedRun<'_, I, T, W, B> {
    /// Takes part until all phases have ended; begins each with the item at `start`.
    fn run(&self, start: usize) {
        let _end_on_panic = EndOnPanic(&self.open);
        let (count, mut phase) = (self.items.len(), self.open.load(Ordering::Acquire));
        while phase < self.phases {
            let passed = *self.passed.read().unwrap_or_else(PoisonError::into_inner);
            for at in (start..count).chain(0..start) {
                let Item { phases, value } = &self.items[at];
                // Where the phase has ended meanwhile, no item is left in it.
                if phases.compare_exchange(phase, phase + 1, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                    (self.work)(phase, at, &mut lock(value), passed);
                    if self.ended.fetch_add(1, Ordering::AcqRel) + 1 == (phase + 1) * count {
                        self.open_after(phase);
                    }
                }
            }
            phase = self.wait_for_end_of(phase);
        }
    }

    fn open_after(&self, phase: usize) {
        if phase + 1 < self.phases {
            let mut items: Vec<_> = self.items.iter().map(|item| lock(&item.value)).collect();
            let items: Vec<&mut I> = items.iter_mut().map(|item| &mut ***item).collect();
            let passed = lock(&self.between)(phase, &items);
            *self.passed.write().unwrap_or_else(PoisonError::into_inner) = passed;
        }
        self.open.store(phase + 1, Ordering::Release);
    }

    /// The phase that is open then.
    fn wait_for_end_of(&self, phase: usize) -> usize {
        let mut reads = 0;
        loop {
            let open = self.open.load(Ordering::Acquire);
            if open != phase {
                return open;
            }
            if reads < READS_BEFORE_YIELD {
                reads += 1;
                spin_loop();
            } else {
                thread::yield_now();
            }
        }
    }
}

/// Ends all phases when a task panics, so that the other threads do not wait for it.
struct EndOnPanic<'a>(&'a AtomicUsize);

impl Drop for EndOnPanic<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.store(usize::MAX, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each item adds what is passed to it: the sum of all items after the phase before.
    fn sums(threads: usize, items: usize, phases: usize) -> Vec<u64> {
        let mut items: Vec<u64> = (0..items as u64).collect();
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let work = |phase, at, item: &mut u64, sum: u64| *item += sum % 97 + (phase * at) as u64;
            let between = |_, items: &[&mut u64]| items.iter().map(|item| **item).sum();
            in_phases(&mut items, phases, 1, work, between);
        });
        items
    }

    #[test]
    fn a_phase_sees_all_of_the_one_before() {
        for (items, phases) in [(0, 3), (1, 1), (1, 50), (7, 0), (7, 200), (40, 30)] {
            let alone = sums(1, items, phases);
            for threads in [2, 3, 9] {
                assert_eq!(sums(threads, items, phases), alone, "{threads} threads, {items} x {phases}");
            }
        }
        assert_eq!(sums(1, 3, 2), [7, 9, 11]);
    }

    #[test]
    fn a_panic_is_passed_on() {
        let caught = std::panic::catch_unwind(|| {
            let work = |phase, at, _: &mut u64, (): ()| assert!((phase, at) != (3, 2), "the task failed");
            in_phases(&mut [0; 5], 9, (), work, |_, _| ());
        });
        assert!(caught.is_err());
    }
}
