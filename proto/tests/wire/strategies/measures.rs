//! What a worker measures of its work.

use std::time::Duration;

use obsdiff_proto::{GpuMemory, Measures, MemoryExcess, PrunedSoFar};
use proptest::option;
use proptest::prelude::*;

pub(super) fn gpu_memory() -> impl Strategy<Value = GpuMemory> {
    any::<[u64; 2]>().prop_map(|[used, total]| GpuMemory { used, total })
}

fn memory_excess() -> impl Strategy<Value = MemoryExcess> {
    any::<[u64; 2]>().prop_map(|[taken, planned]| MemoryExcess { taken, planned })
}

pub(super) fn measures() -> impl Strategy<Value = Measures> {
    let memory = || option::of(any::<u64>());
    let excess = || option::of(memory_excess());
    let gpu = (option::of(gpu_memory()), [excess(), excess()]);
    (any::<[u64; 5]>(), [memory(), memory()], gpu, any::<[u64; 6]>()).prop_map(
        |([prompt_steps, forward, gram, solve, reduced_bytes], memory, gpu, pruned)| {
            let [peak_memory, planned_memory] = memory;
            let (gpu_memory, [opening_excess, solving_excess]) = gpu;
            let [linears, weights, zeros, raised, measured, error_billionths] = pruned;
            Measures {
                prompt_steps,
                forward: Duration::from_nanos(forward),
                gram: Duration::from_nanos(gram),
                solve: Duration::from_nanos(solve),
                reduced_bytes,
                peak_memory,
                planned_memory,
                gpu_memory,
                opening_excess,
                solving_excess,
                pruned: PrunedSoFar { linears, weights, zeros, raised, measured, error_billionths },
            }
        },
    )
}
