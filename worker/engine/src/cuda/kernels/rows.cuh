// What kernels share that work row by row, in f32: sums of a row by 16 threads, and the functions of `model/ops/simd.rs`, whose bits these are.
#pragma once
#include "kernels.cuh"

// Threads of a row, and lanes of its sums.
#define SUM_LANES 16u

// The sum of term(j) for j < n: by lanes, folded by halves, and then the rest. All threads of a warp take part, 16 of them in one sum.
template <class Term>
__device__ float sum_of_lanes(Term term, unsigned n) {
    unsigned lane = threadIdx.x % SUM_LANES, whole = n / SUM_LANES * SUM_LANES;
    float sum = 0.0f, rest = 0.0f;
    for (unsigned j = lane; j < whole; j += SUM_LANES) sum += term(j);
    for (unsigned by = SUM_LANES / 2; by > 0; by /= 2) sum += __shfl_xor_sync(ALL_LANES, sum, by);
    for (unsigned j = whole; j < n; j++) rest += term(j);
    return sum + rest;
}

// The row or head of this thread. A thread without one has the last one, because its warp needs it for the sums; a warp without any has none.
struct Place {
    size_t row;
    bool warp_has_one, has_one;
};

__device__ inline Place place_of_thread(size_t rows) {
    size_t thread = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    size_t row = thread / SUM_LANES, first_of_warp = thread / 32 * 32 / SUM_LANES;
    return Place{row < rows ? row : rows - 1, first_of_warp < rows, row < rows};
}

// e^x as `simd.rs` has it: 2^n e^r, and e^r by its Taylor series.
__device__ inline float exponential(float x) {
    const float round = 12582912.0f;
    x = x < -87.0f ? -87.0f : x;
    x = x > 88.0f ? 88.0f : x;
    float rounded = fmaf(x, 1.44269504088896340736f, round);
    float n = rounded - round;
    float r = fmaf(n, -static_cast<float>(0.693147180559945309417 - 355.0 / 512.0), fmaf(n, -(355.0f / 512.0f), x));
    float series = 1.0f / 5040.0f;
    series = fmaf(r, series, 1.0f / 720.0f);
    series = fmaf(r, series, 1.0f / 120.0f);
    series = fmaf(r, series, 1.0f / 24.0f);
    series = fmaf(r, series, 1.0f / 6.0f);
    series = fmaf(r, series, 0.5f);
    series = fmaf(r, series, 1.0f);
    series = fmaf(r, series, 1.0f);
    return series * __uint_as_float((__float_as_uint(rounded) << 23) + 0x3f800000u);
}

// 1 / x as `simd.rs` has it, for 1 <= x <= e^80: three Newton steps from a guess made of x's bits.
__device__ inline float reciprocal(float x) {
    float guess = __uint_as_float(0x7ef311c3u - __float_as_uint(x));
    for (int i = 0; i < 3; i++) guess = fmaf(fmaf(-x, guess, 1.0f), guess, guess);
    return guess;
}

__device__ inline float gelu(float x) {
    float exponent = -2.0f * 0.7978846f * x * fmaf(0.044715f * x, x, 1.0f);
    exponent = exponent > 80.0f ? 80.0f : exponent;
    return x * reciprocal(1.0f + exponential(exponent));
}

// The type of a kernel that comes for each type of numbers.
#define VALUE(T) VALUE_##T
#define VALUE_f32 float
#define VALUE_bf16 bf16
#define VALUE_f16 f16
