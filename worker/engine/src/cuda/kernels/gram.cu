// Adding an observation X (tokens x n) to a Gram: see `gram/sums.rs`, whose numbers these are.
//
// A Gram is the upper triangle of n x n sums, row after row, row i holding columns i..n, in units of 2^-e (exact) or in f32.
#include "kernels.cuh"

// Tokens that one thread squares. Fixed, so that energies do not depend on the launch.
#define TOKENS_OF_PART 64u

// Threads of a block that adds; values that each of them adds of a part of a row; and values of that part, which a warp adds. Their reads, which
// take long, are under way together: 96 KiB in a block, enough for a multiprocessor that it has to itself.
#define ADDING_THREADS 1024
#define VALUES_OF_THREAD 8u
#define VALUES_OF_WARP (32u * VALUES_OF_THREAD)

// Parts begin at multiples of so many sums: 128 bytes of exact ones.
#define SUMS_OF_LINE 16u

// 1.5 * 2^52: adding it leaves a number below 2^51, rounded to the nearest integer, in the low bits of the sum. See `gram/round.rs`.
#define ROUND 6755399441055744.0

// Largest entry of one observation and of a sum, in units of 2^-e. See `gram/exponent.rs`.
#define OBSERVATION_LIMIT 1125899906842624.0
#define SUM_LIMIT 4611686018427387904.0

#define LARGEST_F32 3.4028234663852886e38

// Writes the sum of squares of each column over each part of the tokens to `parts` (parts x width).
template <class T>
__device__ void column_squares(const T* rows, unsigned tokens, unsigned width, double* parts) {
    unsigned column = blockIdx.x * blockDim.x + threadIdx.x;
    unsigned first = blockIdx.y * TOKENS_OF_PART;
    if (column >= width || first >= tokens) return;
    unsigned end = tokens - first < TOKENS_OF_PART ? tokens : first + TOKENS_OF_PART;
    double sum = 0.0;
#pragma unroll 8
    for (unsigned token = first; token < end; token++) {
        double x = to_f32(rows[static_cast<size_t>(token) * width + column]);
        sum += x * x;
    }
    parts[static_cast<size_t>(blockIdx.y) * width + column] = sum;
}

extern "C" __global__ void column_squares_f32(const float* rows, unsigned tokens, unsigned width, double* parts) {
    column_squares(rows, tokens, width, parts);
}

extern "C" __global__ void column_squares_bf16(const bf16* rows, unsigned tokens, unsigned width, double* parts) {
    column_squares(rows, tokens, width, parts);
}

extern "C" __global__ void column_squares_f16(const f16* rows, unsigned tokens, unsigned width, double* parts) {
    column_squares(rows, tokens, width, parts);
}

// Copies rows of `width` numbers to rows `stride` apart. Behind them come ones up to column `ones`, then zeros. The grid's x goes over columns,
// its y over rows.
template <class T>
__device__ void pad_rows(const T* from, unsigned rows, unsigned width, unsigned ones, unsigned stride, T* to) {
    for (size_t row = blockIdx.y; row < rows; row += gridDim.y)
        for (size_t column = blockIdx.x * blockDim.x + threadIdx.x; column < stride; column += gridDim.x * blockDim.x) {
            T* out = &to[row * stride + column];
            if (column < width)
                *out = from[row * width + column];
            else
                from_f32(column < ones ? 1.0f : 0.0f, out);
        }
}

extern "C" __global__ void pad_rows_f32(const float* from, unsigned rows, unsigned width, unsigned ones, unsigned stride, float* to) {
    pad_rows(from, rows, width, ones, stride, to);
}

extern "C" __global__ void pad_rows_bf16(const bf16* from, unsigned rows, unsigned width, unsigned ones, unsigned stride, bf16* to) {
    pad_rows(from, rows, width, ones, stride, to);
}

extern "C" __global__ void pad_rows_f16(const f16* from, unsigned rows, unsigned width, unsigned ones, unsigned stride, f16* to) {
    pad_rows(from, rows, width, ones, stride, to);
}

// Adds `alpha` times the sum over `parts` (count x width) to the energy of each column.
extern "C" __global__ void add_column_squares(const double* parts, unsigned count, unsigned width, double alpha, double* energy) {
    unsigned column = blockIdx.x * blockDim.x + threadIdx.x;
    if (column >= width) return;
    double sum = 0.0;
#pragma unroll 8
    for (unsigned part = 0; part < count; part++) sum += parts[static_cast<size_t>(part) * width + column];
    energy[column] += alpha * sum;
}

// Lowers verdict[0] to the first column whose energy (without alpha) is not finite or too large for f32, verdict[1] to the first one that
// passes a limit. Both are NO_PLACE before; an observation is refused unless both stay so.
__device__ inline void judge(double energy, double sum, double alpha, double observation_limit, double sum_limit, unsigned column,
                             unsigned* verdict) {
    // Half of f32's range, because the product rounds where the energy does not. A NaN fails the comparison too.
    if (!(energy < LARGEST_F32 / 2.0)) atomicMin(&verdict[0], column);
    double weighted = alpha * energy;
    if (weighted >= observation_limit || weighted + sum >= sum_limit) atomicMin(&verdict[1], column);
}

// For exact sums; `unit` is 2^-e.
extern "C" __global__ void admit_observation_exact(const double* energy, const long long* sums, unsigned n, double alpha, double unit,
                                                   unsigned* verdict) {
    unsigned column = blockIdx.x * blockDim.x + threadIdx.x;
    if (column >= n) return;
    double sum = static_cast<double>(sums[start_of_row(n, column)]) * unit;
    judge(energy[column], sum, alpha, OBSERVATION_LIMIT * unit, SUM_LIMIT * unit, column, verdict);
}

// For f32 sums.
extern "C" __global__ void admit_observation_f32(const double* energy, const float* sums, unsigned n, double alpha, unsigned* verdict) {
    unsigned column = blockIdx.x * blockDim.x + threadIdx.x;
    if (column >= n) return;
    judge(energy[column], sums[start_of_row(n, column)], alpha, 1.7976931348623157e308, LARGEST_F32 / 2.0, column, verdict);
}

// Replaces the sums of a tile by what `add` makes of value and sum. The tile holds rows x columns values of X^T X, its rows `stride` apart; its
// first one is the Gram's (row0, column0). What lies below the diagonal is left out. Warps take parts of rows in turn, so any number of blocks
// does all of it. Each sum is one thread's alone. Sums and values leave the caches first: nobody needs them soon, and products need the room.
template <class Sum, class Add>
__device__ void add_tile(const float* tile, unsigned rows, unsigned columns, unsigned stride, unsigned row0, unsigned column0, unsigned n,
                         Sum* sums, Add add) {
    if (row0 >= n || column0 >= n) return;
    rows = n - row0 < rows ? n - row0 : rows;
    columns = n - column0 < columns ? n - column0 : columns;
    unsigned lane = threadIdx.x % 32, warps = gridDim.x * (blockDim.x / 32), warp = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    unsigned parts = (columns + SUMS_OF_LINE - 1 + VALUES_OF_WARP - 1) / VALUES_OF_WARP;
    for (unsigned part = warp; part < rows * parts; part += warps) {
        unsigned i = part / parts, row = row0 + i, first = row < column0 ? column0 : row;
        // Columns from there on: none where the tile has only such below the diagonal.
        unsigned left = first - column0 < columns ? columns - (first - column0) : 0;
        size_t start = start_of_row(n, row) + (first - row);
        // Below zero where the line holds sums before the first.
        int at = static_cast<int>(part % parts * VALUES_OF_WARP + lane) - static_cast<int>(start % SUMS_OF_LINE);
        const float* values = tile + static_cast<size_t>(i) * stride + (first - column0) + at;
        Sum* of_part = sums + start + at;
        float value[VALUES_OF_THREAD];
        Sum sum[VALUES_OF_THREAD];
#pragma unroll
        for (unsigned k = 0; k < VALUES_OF_THREAD; k++) {
            if (static_cast<unsigned>(at) + 32 * k >= left) continue;
            sum[k] = __ldcs(&of_part[32 * k]);
            value[k] = __ldcs(&values[32 * k]);
        }
#pragma unroll
        for (unsigned k = 0; k < VALUES_OF_THREAD; k++) {
            if (static_cast<unsigned>(at) + 32 * k < left) __stcs(&of_part[32 * k], add(value[k], sum[k]));
        }
    }
}

// Adds round(`scale` * tile) to the sums, with `scale` = alpha * 2^e, and nothing where an observation was refused. A value that rounding would
// spoil, because it is not finite or 2^51 or more, is not added but counted in `spoilt`: an observation that was admitted has none.
extern "C" __global__ void __launch_bounds__(ADDING_THREADS)
    add_tile_exact(const float* tile, unsigned rows, unsigned columns, unsigned stride, unsigned row0, unsigned column0, unsigned n, double scale,
                   const unsigned* verdict, long long* sums, unsigned* spoilt) {
    if (verdict[0] != NO_PLACE || verdict[1] != NO_PLACE) return;
    add_tile(tile, rows, columns, stride, row0, column0, n, sums, [=](float value, long long sum) {
        double scaled = static_cast<double>(value) * scale;
        if (!(fabs(scaled) < 2251799813685248.0)) {
            atomicAdd(spoilt, 1u);
            return sum;
        }
        unsigned long long rounded = __double_as_longlong(scaled + ROUND) - __double_as_longlong(ROUND);
        // Unsigned, because a sum beyond i64 would wrap.
        return static_cast<long long>(static_cast<unsigned long long>(sum) + rounded);
    });
}

// The same for f32 sums: adds alpha * tile.
extern "C" __global__ void __launch_bounds__(ADDING_THREADS)
    add_tile_f32(const float* tile, unsigned rows, unsigned columns, unsigned stride, unsigned row0, unsigned column0, unsigned n, float alpha,
                 const unsigned* verdict, float* sums) {
    if (verdict[0] != NO_PLACE || verdict[1] != NO_PLACE) return;
    add_tile(tile, rows, columns, stride, row0, column0, n, sums, [=](float value, float sum) { return sum + alpha * value; });
}

// Raises `largest` to the largest sum on the diagonal. It is 0 or an earlier result before.
extern "C" __global__ void largest_of_diagonal(const long long* sums, unsigned n, long long* largest) {
    unsigned column = blockIdx.x * blockDim.x + threadIdx.x;
    if (column < n) atomicMax(largest, sums[start_of_row(n, column)]);
}
