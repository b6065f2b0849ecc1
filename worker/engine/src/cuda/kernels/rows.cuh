// What kernels share that work row by row, in f32: parts of a row that are read and written at once, sums of a row by 16 threads, and the
// functions of `model/ops/simd.rs`, whose bits these are.
#pragma once
#include "kernels.cuh"

// COUNT neighbouring numbers of a row: read and written at once, or one by one.
template <unsigned COUNT, bool AT_ONCE>
struct Part {
    static constexpr unsigned count = COUNT;

    __device__ constexpr Part<COUNT / 2, AT_ONCE> half() const { return {}; }
};

// Numbers of a part that is 16 bytes of T, the most that a thread reads or writes at once.
template <class T>
constexpr unsigned PART = 16 / sizeof(T);

// Whether parts of PART<T> numbers are read and written at once: sizes, of which this is the bitwise or, are multiples of that, and matrices
// begin at multiples of 16 bytes.
template <class T, class... Numbers>
__device__ bool are_at_once(unsigned sizes, const Numbers*... starts) {
    return sizes % PART<T> == 0 && ((reinterpret_cast<size_t>(starts) % 16 == 0) && ...);
}

// Calls of_part(part, row, column) for this thread's parts, which begin at these columns of a matrix of rows x width. The threads of a block,
// and the blocks, lie in a plane: x goes over columns, y over rows.
template <unsigned COUNT, bool AT_ONCE, class OfPart>
__device__ void for_each(Part<COUNT, AT_ONCE> part, unsigned rows, size_t width, OfPart of_part) {
    size_t x = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x, columns = static_cast<size_t>(gridDim.x) * blockDim.x * COUNT;
    size_t y = static_cast<size_t>(blockIdx.y) * blockDim.y + threadIdx.y, step = static_cast<size_t>(gridDim.y) * blockDim.y;
    for (size_t column = x * COUNT; column < width; column += columns)
        for (size_t row = y; row < rows; row += step) of_part(part, row, column);
}

// The same for parts of PART<T> numbers where they are read and written at once, or else of LEAST, one by one.
template <class T, unsigned LEAST = 1, class OfPart>
__device__ void for_each_part(bool at_once, unsigned rows, size_t width, OfPart of_part) {
    if (at_once) {
        for_each(Part<PART<T>, true>(), rows, width, of_part);
    } else {
        for_each(Part<LEAST, false>(), rows, width, of_part);
    }
}

// What one instruction reads or writes.
template <class T, unsigned COUNT>
struct alignas(COUNT * sizeof(T)) Vector {
    T numbers[COUNT];
};

// The numbers of a part that one instruction reads or writes.
template <class T, unsigned COUNT, bool AT_ONCE>
constexpr unsigned AT_A_TIME = !AT_ONCE ? 1 : COUNT < PART<T> ? COUNT : PART<T>;

// A part's numbers.
template <unsigned COUNT>
struct Numbers {
    float numbers[COUNT];

    __device__ float operator[](unsigned j) const { return numbers[j]; }
};

template <class T, unsigned COUNT, bool AT_ONCE>
__device__ Numbers<COUNT> read(Part<COUNT, AT_ONCE>, const T* from) {
    constexpr unsigned STEP = AT_A_TIME<T, COUNT, AT_ONCE>;
    Numbers<COUNT> read;
#pragma unroll
    for (unsigned i = 0; i < COUNT; i += STEP) {
        Vector<T, STEP> vector = *reinterpret_cast<const Vector<T, STEP>*>(from + i);
#pragma unroll
        for (unsigned j = 0; j < STEP; j++) read.numbers[i + j] = to_f32(vector.numbers[j]);
    }
    return read;
}

// Writes number(j), rounded, as number j of a part.
template <class T, unsigned COUNT, bool AT_ONCE, class Number>
__device__ void write(Part<COUNT, AT_ONCE>, T* to, Number number) {
    constexpr unsigned STEP = AT_A_TIME<T, COUNT, AT_ONCE>;
#pragma unroll
    for (unsigned i = 0; i < COUNT; i += STEP) {
        Vector<T, STEP> vector;
#pragma unroll
        for (unsigned j = 0; j < STEP; j++) from_f32(number(i + j), &vector.numbers[j]);
        *reinterpret_cast<Vector<T, STEP>*>(to + i) = vector;
    }
}

// Copies a part bit by bit.
template <class T, unsigned COUNT, bool AT_ONCE>
__device__ void copy(Part<COUNT, AT_ONCE>, const T* from, T* to) {
    constexpr unsigned STEP = AT_A_TIME<T, COUNT, AT_ONCE>;
#pragma unroll
    for (unsigned i = 0; i < COUNT; i += STEP)
        *reinterpret_cast<Vector<T, STEP>*>(to + i) = *reinterpret_cast<const Vector<T, STEP>*>(from + i);
}

// Threads of a row, and lanes of its sums.
#define SUM_LANES 16u

// The sum of term(j) for j < n: by lanes, folded by halves, and then the rest. All threads of a warp take part, 16 of them in one sum.
template <class Term>
__device__ float sum_of_lanes(Term term, size_t n) {
    size_t lane = threadIdx.x % SUM_LANES, whole = n / SUM_LANES * SUM_LANES;
    float sum = 0.0f, rest = 0.0f;
    for (size_t j = lane; j < whole; j += SUM_LANES) sum += term(j);
    for (unsigned by = SUM_LANES / 2; by > 0; by /= 2) sum += __shfl_xor_sync(ALL_LANES, sum, by);
    for (size_t j = whole; j < n; j++) rest += term(j);
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

// Calls of_part(part, column) for this thread's parts of its row: of COUNT numbers where they are read and written at once, or else of one.
template <unsigned COUNT, class OfPart>
__device__ void for_each_of_row(bool at_once, size_t width, OfPart of_part) {
    size_t lane = threadIdx.x % SUM_LANES;
    if (at_once) {
        for (size_t j = lane * COUNT; j < width; j += SUM_LANES * COUNT) of_part(Part<COUNT, true>(), j);
    } else {
        for (size_t j = lane; j < width; j += SUM_LANES) of_part(Part<1, false>(), j);
    }
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
