use obsdiff_proto::{Epoch, GpuMemory, MemoryExcess};

use super::*;

fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[test]
fn a_phase_that_continues_after_a_fault_has_one_entry_with_all_its_time() {
    let mut history = History::default();
    let first = Some(PackageId(0));
    for (second, package, phase) in [
        (0, None, Phase::Pilot),
        (2, first, Phase::Calibrate),
        (3, first, Phase::Calibrate),
        (7, first, Phase::Reduce),
        (8, first, Phase::Calibrate),
        (10, first, Phase::Reduce),
    ] {
        history.stand(at(second), package, phase, 1);
    }
    let time = |package, phase, seconds, since: Option<u64>| PhaseTime {
        package,
        phase,
        took: at(seconds),
        since: since.map(at),
    };
    let calibrated = time(first, Phase::Calibrate, 7, None);
    assert_eq!(
        history.course().timeline,
        [time(None, Phase::Pilot, 2, None), calibrated, time(first, Phase::Reduce, 1, Some(10))]
    );
    history.stand(at(15), None, Phase::Over, 1);
    assert_eq!(history.course().timeline[2], time(first, Phase::Reduce, 6, None));
}

fn left(worker: u64, why: &str) -> Event {
    let (worker, why, quiet, lost) = (WorkerId(worker), why.to_owned(), Duration::ZERO, Vec::new());
    Event::Left { worker, why, quiet, lost, saved: 0, drained: false }
}

#[test]
fn a_course_counts_workers_groups_and_faults_until_the_job_is_over() {
    let mut history = History::default();
    let [first, second] = [0, 1].map(|package| Some(PackageId(package)));
    let group = |history: &mut History, epoch, members| {
        history.event(at(0), &Event::Grouped { epoch: Epoch(epoch), members });
        history.event(at(0), &Event::Formed { epoch: Epoch(epoch) });
    };
    history.stand(at(1), first, Phase::Reduce, 3);
    group(&mut history, 1, 3);
    history.event(at(9), &left(2, "gone"));
    history.event(at(10), &left(3, "drained"));
    history.stand(at(11), first, Phase::Calibrate, 1);
    history.stand(at(12), first, Phase::Reduce, 2);
    group(&mut history, 2, 2);
    history.stand(at(15), second, Phase::Reduce, 2);
    group(&mut history, 3, 1);
    history.stand(at(24), None, Phase::Over, 2);
    history.event(at(25), &left(1, "the connection ended"));
    let course = history.course();
    assert_eq!((course.most_workers, course.workers_lost, course.groups), (3, 2, 3));
    assert_eq!(course.sendings, BTreeMap::from([(PackageId(0), 3), (PackageId(1), 0)]));
    // A worker that drained left, too, but nothing was wrong.
    let faults: Vec<_> = course.faults.iter().map(|fault| (fault.at, fault.fault)).collect();
    assert_eq!(faults, [(at(9), true), (at(10), false)]);
    assert!(course.faults[0].words.starts_with("worker 2 left (gone)"), "{:?}", course.faults);
}

#[test]
fn only_connected_workers_show_memory() {
    let mut history = History::default();
    let says = |history: &mut History, worker, used| {
        let gpu_memory = Some(GpuMemory { used, total: 100 });
        let measures = Measures { peak_memory: Some(7), gpu_memory, ..Measures::default() };
        history.reported(at(0), WorkerId(worker), &measures);
    };
    history.event(at(0), &Event::Preparing { worker: WorkerId(1) });
    history.event(at(0), &Event::Joined { worker: WorkerId(2), kept: 0 });
    says(&mut history, 1, 10);
    says(&mut history, 2, 20);
    says(&mut history, 3, 30);
    // A worker that sends nothing for a moment is not forgotten.
    history.reported(at(0), WorkerId(2), &Measures::default());
    let memory = |worker, used| WorkerMemory {
        worker: WorkerId(worker),
        peak: Some(7),
        planned: None,
        gpu: Some(GpuMemory { used, total: 100 }),
    };
    assert_eq!(history.memory.values().copied().collect::<Vec<_>>(), [memory(1, 10), memory(2, 20)]);
    history.event(at(1), &left(1, "gone"));
    says(&mut history, 1, 10);
    assert_eq!(history.memory.values().copied().collect::<Vec<_>>(), [memory(2, 20)]);
}

#[test]
fn memory_beyond_the_plan_is_a_fault_of_each_process_once() {
    let mut history = History::default();
    let excess = |taken| Some(MemoryExcess { taken, planned: 1 << 20 });
    let says = |history: &mut History, second, worker, opening_excess, solving_excess| {
        let measures = Measures { opening_excess, solving_excess, ..Measures::default() };
        history.reported(at(second), WorkerId(worker), &measures);
    };
    history.joined(WorkerId(1), 7);
    history.joined(WorkerId(2), 8);
    says(&mut history, 3, 1, excess(3 << 20), None);
    says(&mut history, 4, 1, excess(4 << 20), excess(5 << 20));
    says(&mut history, 5, 2, excess(3 << 20), None);
    // The first one comes back, and one that nobody knows says something.
    history.event(at(6), &left(1, "gone"));
    history.joined(WorkerId(3), 7);
    says(&mut history, 7, 3, excess(3 << 20), excess(5 << 20));
    says(&mut history, 8, 9, excess(3 << 20), None);
    let faults = &history.course().faults;
    let opened = |worker| {
        format!("worker {worker}: opening its GPU took 3.0 MiB of its memory, but plans count 1.0 MiB")
    };
    let words: Vec<_> = faults.iter().map(|fault| (fault.at, fault.fault, fault.words.clone())).collect();
    let solved =
        "worker 1: a factorisation on its GPU works in 5.0 MiB of its memory, but plans count 1.0 MiB";
    assert_eq!(words[..2], [(at(3), true, opened(1)), (at(4), true, solved.to_owned())]);
    assert_eq!(words[2], (at(5), true, opened(2)));
    assert!(words.len() == 4 && words[3].2.starts_with("worker 1 left (gone)"), "{words:?}");
    assert_eq!(history.events.len(), 4);
    // Once the job is over nothing goes wrong with it any more.
    history.stand(at(9), None, Phase::Over, 0);
    says(&mut history, 9, 2, None, excess(5 << 20));
    assert_eq!(history.course().faults.len(), 4);
}

#[test]
fn nothing_is_kept_of_workers_that_left_or_were_sent_away() {
    let mut history = History::default();
    for worker in 0..1000 {
        history.joined(WorkerId(worker), 7);
        // The core takes in every second one.
        if worker % 2 == 0 {
            history.event(at(worker), &Event::Preparing { worker: WorkerId(worker) });
            history.event(at(worker), &left(worker, "gone"));
        } else {
            history.dismissed(WorkerId(worker));
        }
    }
    assert!(history.processes.is_empty() && history.memory.is_empty(), "{:?}", history.processes);
}

#[test]
fn lists_are_bounded_and_keep_what_came_last_but_of_faults_what_came_first() {
    let mut history = History::default();
    for second in 0..1000 {
        history.event(at(second), &left(second, "gone"));
    }
    assert_eq!((history.course().faults.len(), history.course().further_faults), (200, 800));
    assert_eq!(history.course().faults[199].at, at(199));
    assert_eq!((history.workers_left.len(), history.events.len()), (LEFT, EVENTS));
    let last = history.events.back().unwrap();
    assert!(last.fault && last.at == at(999) && last.words.starts_with("worker 999 left (gone)"), "{last:?}");
    history.event(at(1000), &Event::Ready { worker: WorkerId(3) });
    assert!(!history.events.back().unwrap().fault);
}

#[test]
fn blocks_stand_in_the_order_of_the_model_with_the_mean_of_their_errors() {
    let mut history = History::default();
    let linear = |id, name: &str, weights, zeros, error| LinearFigures {
        linear: LinearId(id),
        name: name.to_owned(),
        weights,
        zeros,
        error,
    };
    history.pruned(vec![
        linear(9, "single_blocks.0.proj", 10, 5, None),
        linear(2, "blocks.10.attn.to_q", 30, 10, Some(0.1)),
    ]);
    history.pruned(vec![
        linear(3, "blocks.10.attn.to_k", 10, 2, Some(0.5)),
        linear(1, "blocks.2.attn.to_k", 4, 4, Some(0.25)),
        linear(4, "proj", 1, 0, None),
    ]);
    let block = |name: &str, weights, zeros, mean_error| BlockFigures {
        name: name.to_owned(),
        weights,
        zeros,
        mean_error,
    };
    assert_eq!(
        history.blocks(),
        [
            block("blocks.2", 4, 4, Some(0.25)),
            block("blocks.10", 40, 12, Some(0.2)),
            block("proj", 1, 0, None),
            block("single_blocks.0", 10, 5, None)
        ]
    );
}
