// Between two products of refinement: see `solve/refine.rs` and `solve/rows.rs`, whose bits these are but for `energies`. All matrices are
// rows x n, all in units of s; one block takes a row, with 256 threads and 8 bytes of shared memory for each 1024 columns.
#include "kernels.cuh"

// Values that are summed in f32 before f64 takes over, by the 32 lanes of a warp.
#define RUN 1024u

// Threads of a block.
#define ROW_THREADS 256u

// The sum of term(j) over a row: each warp sums runs in f32, lane by lane, and the totals are added in order. `totals` is shared, with room
// for each run. By all threads of the block, which have it as a barrier.
template <class Term>
__device__ double sum_of_row(Term term, unsigned n, double* totals) {
    unsigned lane = threadIdx.x % 32, runs = (n + RUN - 1) / RUN;
    for (unsigned run = threadIdx.x / 32; run < runs; run += blockDim.x / 32) {
        unsigned first = run * RUN, end = n - first < RUN ? n : first + RUN;
        unsigned whole = first + (end - first) / 32 * 32;
        float mine = 0.0f;
        for (unsigned j = first + lane; j < whole; j += 32) mine += term(j);
        double total = 0.0, rest = 0.0;
        for (unsigned from = 0; from < 32; from++) total += static_cast<double>(__shfl_sync(ALL_LANES, mine, from));
        for (unsigned j = whole; j < end; j++) rest += static_cast<double>(term(j));
        if (lane == 0) totals[run] = total + rest;
    }
    __syncthreads();
    double sum = 0.0;
    for (unsigned run = 0; run < runs; run++) sum += totals[run];
    __syncthreads();
    return sum;
}

// The error of a row off by d(j), where `product` = d A and `damping` is the share of A's diagonal that damping put there: with damping in A,
// and without. Each thread sums every 256th value in f64, and a tree of fixed shape the threads' sums.
struct Energies {
    double damped, plain;
};

template <class Off>
__device__ Energies energies(Off off, const float* product, const float* damping, unsigned n) {
    __shared__ double damped[ROW_THREADS], plain[ROW_THREADS];
    Energies mine{0.0, 0.0};
    for (unsigned j = threadIdx.x; j < n; j += ROW_THREADS) {
        double d = off(j), p = product[j];
        mine.damped += d * p;
        mine.plain += d * (p - static_cast<double>(damping[j]) * d);
    }
    damped[threadIdx.x] = mine.damped;
    plain[threadIdx.x] = mine.plain;
    __syncthreads();
    for (unsigned half = ROW_THREADS / 2; half > 0; half /= 2) {
        if (threadIdx.x < half) {
            damped[threadIdx.x] += damped[threadIdx.x + half];
            plain[threadIdx.x] += plain[threadIdx.x + half];
        }
        __syncthreads();
    }
    Energies sum{damped[0], plain[0]};
    __syncthreads();
    return sum;
}

// x, where the weight v stays.
__device__ inline float kept(float v, float x) { return v == 0.0f ? 0.0f : x; }

// a / b for a step; 0 where there is nothing left to divide by.
__device__ inline float step_ratio(double a, double b) {
    float ratio = static_cast<float>(a / b);
    return b > 0.0 && fabsf(ratio) < INFINITY ? ratio : 0.0f;
}

// v becomes w s (V), d becomes w0 s - v (V0 - V).
extern "C" __global__ void offset_rows(float* v, float* d, const float* weight, const float* dense, const float* scale, unsigned n) {
    size_t row = static_cast<size_t>(blockIdx.x) * n;
    for (unsigned j = threadIdx.x; j < n; j += blockDim.x) {
        float of = weight[row + j] * scale[j];
        v[row + j] = of;
        d[row + j] = dense[row + j] * scale[j] - of;
    }
}

// With V0 - V in `direction` and (V0 - V) A in `residual`: the errors before any step (rows x 2: damped, plain), the first direction, which is
// the residual at the weights that stay, and its square.
extern "C" __global__ void first_direction(float* direction, const float* residual, const float* v, const float* damping, unsigned n,
                                           double* errors, double* squares) {
    DYNAMIC_SHARED(double, totals);
    size_t row = static_cast<size_t>(blockIdx.x) * n;
    float *p = direction + row;
    const float *r = residual + row, *weight = v + row;
    Energies before = energies([=](unsigned j) { return p[j]; }, r, damping, n);
    for (unsigned j = threadIdx.x; j < n; j += blockDim.x) p[j] = kept(weight[j], r[j]);
    __syncthreads();
    double square = sum_of_row([=](unsigned j) { return p[j] * p[j]; }, n, totals);
    if (threadIdx.x == 0) {
        errors[2 * blockIdx.x] = before.damped;
        errors[2 * blockIdx.x + 1] = before.plain;
        squares[blockIdx.x] = square;
    }
}

// One step of each row along its direction P, with `product` = P A, and the direction of the next step, if there are `more`. A row whose
// residual is 0 stands still.
extern "C" __global__ void advance_rows(float* v, float* residual, float* direction, const float* product, unsigned n, double* squares,
                                        unsigned more) {
    DYNAMIC_SHARED(double, totals);
    size_t row = static_cast<size_t>(blockIdx.x) * n;
    float *weight = v + row, *r = residual + row, *p = direction + row;
    const float* q = product + row;
    double before = squares[blockIdx.x];
    float length = step_ratio(before, sum_of_row([=](unsigned j) { return p[j] * q[j]; }, n, totals));
    for (unsigned j = threadIdx.x; j < n; j += blockDim.x) {
        weight[j] += length * p[j];
        r[j] -= length * q[j];
    }
    __syncthreads();
    double square = 0.0;
    if (more != 0) {
        square = sum_of_row([=](unsigned j) { return kept(weight[j], r[j]) * kept(weight[j], r[j]); }, n, totals);
        float turn = step_ratio(square, before);
        for (unsigned j = threadIdx.x; j < n; j += blockDim.x) p[j] = kept(weight[j], r[j]) + turn * p[j];
    }
    if (threadIdx.x == 0) squares[blockIdx.x] = square;
}

// Takes over the rows whose error fell: their weight becomes v / s. `errors` holds those before (rows x 2: damped, plain); its damped ones
// become the plain ones before, its plain ones those that are left.
extern "C" __global__ void finish_rows(float* weight, const float* dense, const float* v, const float* residual, const float* scale,
                                       const float* damping, unsigned n, double* errors) {
    size_t row = static_cast<size_t>(blockIdx.x) * n;
    Energies after = energies([=](unsigned j) { return dense[row + j] * scale[j] - v[row + j]; }, residual + row, damping, n);
    double damped = errors[2 * blockIdx.x], plain = errors[2 * blockIdx.x + 1];
    bool fell = after.damped < damped;
    if (fell)
        for (unsigned j = threadIdx.x; j < n; j += blockDim.x) weight[row + j] = v[row + j] / scale[j];
    __syncthreads();
    if (threadIdx.x == 0) {
        errors[2 * blockIdx.x] = plain;
        errors[2 * blockIdx.x + 1] = fell ? after.plain : plain;
    }
}
