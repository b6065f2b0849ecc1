// Kernels with a fault each, for the tests of the shim: it must notice all of them.
#include "../kernels/kernels.cuh"

// Reads what another thread wrote, without a barrier in between.
extern "C" __global__ void needs_a_barrier(unsigned* out) {
    __shared__ unsigned values[64];
    values[threadIdx.x] = threadIdx.x;
    out[threadIdx.x] = values[63 - threadIdx.x];
}

// Half of the threads wait at one barrier, half at another.
extern "C" __global__ void waits_in_one_branch(unsigned* out) {
    if (threadIdx.x < 32) {
        __syncthreads();
    } else {
        __syncthreads();
    }
    out[threadIdx.x] = 1;
}

// Some threads end, and the others wait for them.
extern "C" __global__ void ends_before_a_barrier(unsigned* out) {
    if (threadIdx.x > 40) return;
    __syncthreads();
    out[threadIdx.x] = 1;
}

// Without fault: every thread of every block is counted, and shared memory is seen by all of a block.
extern "C" __global__ void counts_its_threads(unsigned* out) {
    __shared__ unsigned counted;
    if (threadIdx.x == 0) counted = 0;
    __syncthreads();
    atomicAdd(&counted, 1u);
    __syncthreads();
    if (threadIdx.x == 0) atomicAdd(out, counted);
    out[1 + blockIdx.x * blockDim.x + threadIdx.x] = __shfl_xor_sync(ALL_LANES, threadIdx.x, 1);
}

// Writes one value too many.
extern "C" __global__ void writes_past_its_buffer(unsigned* out, unsigned count) {
    for (unsigned i = threadIdx.x; i <= count; i += blockDim.x) out[i] = i;
}

// Reads 16 bytes at once, and writes them, at multiples of 4 bytes alone.
struct alignas(16) Words {
    unsigned word[4];
};
extern "C" __global__ void reads_across_multiples_of_16(const unsigned* from, unsigned* out) {
    Words words = *reinterpret_cast<const Words*>(from + threadIdx.x);
    out[threadIdx.x] = words.word[0] + words.word[3];
}
extern "C" __global__ void writes_across_multiples_of_16(unsigned* out) {
    Words words = {{threadIdx.x, 0, 0, 0}};
    *reinterpret_cast<Words*>(out + threadIdx.x) = words;
}
