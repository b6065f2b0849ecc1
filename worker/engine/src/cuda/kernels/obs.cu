// Pruning one block of columns by OBS: see `solve/obs.rs` and `solve/columns.rs`, whose bits these are. A warp takes a row and keeps its weights
// in registers, four to a lane: column c is lane c % 32's. What is past the block is one product with the errors, which is not done here.
#include "selection.cuh"

// Columns of a block, at most.
#define BLOCK_COLUMNS 128u

#define PER_LANE 4u

// A row of a block on its way.
struct Row {
    // Weights, as updated so far.
    float w[PER_LANE];
    // 1 / U_cc of the same columns.
    float reciprocal[PER_LANE];
    // w / U_cc of those that went, 0 of the others.
    float error[PER_LANE];
    // Bit k: whether the lane's k-th weight goes.
    unsigned going;
};

// The k-th of four values in registers.
__device__ inline float kth(const float (&values)[PER_LANE], unsigned k) {
    return k == 0 ? values[0] : k == 1 ? values[1] : k == 2 ? values[2] : values[3];
}

// Prunes column j, whose weight is current: sets it to 0 where it goes and takes w / U_jj times row j of U off the columns to its right.
__device__ inline void eliminate(Row& row, unsigned j, const float* u, unsigned columns, unsigned lane) {
    unsigned of = j / 32, owner = j % 32;
    float error = (row.going >> of & 1u) != 0 ? kth(row.w, of) * kth(row.reciprocal, of) : 0.0f;
    error = __shfl_sync(ALL_LANES, error, owner);
#pragma unroll
    for (unsigned k = 0; k < PER_LANE; k++)
        if (32 * k + lane == j) row.error[k] = error;
#pragma unroll
    for (unsigned k = 0; k < PER_LANE; k++) {
        unsigned column = 32 * k + lane;
        if (column == j && (row.going >> k & 1u) != 0) row.w[k] = 0.0f;
        // Without an error the others stay as they are.
        if (error != 0.0f && column > j && column < columns) row.w[k] = fmaf(-u[static_cast<size_t>(j) * columns + column], error, row.w[k]);
    }
}

// Has the `pruned` lowest of columns first .. first + size go, by |w / U_cc|, of equal ones the first.
__device__ inline void choose_of_group(Row& row, unsigned first, unsigned size, unsigned pruned, unsigned lane) {
    float score[PER_LANE];
    unsigned rank[PER_LANE];
#pragma unroll
    for (unsigned k = 0; k < PER_LANE; k++) {
        score[k] = fabsf(row.w[k] * row.reciprocal[k]);
        rank[k] = 0;
    }
    for (unsigned other = first; other < first + size; other++) {
        float than = __shfl_sync(ALL_LANES, kth(score, other / 32), other % 32);
#pragma unroll
        for (unsigned k = 0; k < PER_LANE; k++) rank[k] += than < score[k] || (than == score[k] && other < 32 * k + lane);
    }
#pragma unroll
    for (unsigned k = 0; k < PER_LANE; k++) {
        unsigned column = 32 * k + lane;
        if (column >= first && column < first + size && rank[k] < pruned) row.going |= 1u << k;
    }
}

__device__ inline void load(Row& row, const float* settled, const float* reciprocal, size_t at, unsigned columns, unsigned lane) {
    row.going = 0;
#pragma unroll
    for (unsigned k = 0; k < PER_LANE; k++) {
        unsigned column = 32 * k + lane;
        row.w[k] = column < columns ? settled[at * columns + column] : 0.0f;
        row.error[k] = 0.0f;
        row.reciprocal[k] = column < columns ? reciprocal[column] : 0.0f;
    }
}

// Puts the weights in the place of those before, and the errors of those that went beside each other.
__device__ inline void store(const Row& row, float* weight, float* errors, size_t at, unsigned columns, unsigned n, unsigned lane) {
#pragma unroll
    for (unsigned k = 0; k < PER_LANE; k++) {
        unsigned column = 32 * k + lane;
        if (column >= columns) continue;
        weight[at * n + column] = row.w[k];
        errors[at * columns + column] = row.error[k];
    }
}

// Prunes a block of 1 to 128 columns. `settled` (rows x columns) holds the weights with the errors of all columns left of the block taken
// off; the pruned ones go to `weight`, which points to the block's first column in a matrix of n columns. The errors w / U_jj of those that
// went go to `errors` (rows x columns), 0 for the others: times the rows of U that are the block's, they come off the columns to its right.
// `u` (columns x columns) holds U_ij at i * columns + j, `reciprocal` 1 / U_jj. Goes what `selection` says of the keys of `settled` times
// `reciprocal`.
extern "C" __global__ void prune_block_lowest(const float* settled, const float* u, const float* reciprocal, unsigned rows, unsigned columns,
                                              unsigned n, const Selection* selection, float* weight, float* errors) {
    size_t at = static_cast<size_t>(blockIdx.x) * (blockDim.x / 32) + threadIdx.x / 32;
    unsigned lane = threadIdx.x % 32;
    if (at >= rows) return;
    Row row;
    load(row, settled, reciprocal, at, columns, lane);
    Selection of = *selection;
#pragma unroll
    for (unsigned k = 0; k < PER_LANE; k++) {
        unsigned key = __float_as_uint(row.w[k] * row.reciprocal[k]) & 0x7fffffffu;
        if (goes(of, key, at, 32 * k + lane)) row.going |= 1u << k;
    }
    for (unsigned j = 0; j < columns; j++) eliminate(row, j, u, columns, lane);
    store(row, weight, errors, at, columns, n, lane);
}

// The same with `pruned` of every `m` columns going, floor(pruned * tail / m) of a shorter tail: the lowest by the weights when their group's
// turn comes. Groups begin at the block's first column.
extern "C" __global__ void prune_block_n_to_m(const float* settled, const float* u, const float* reciprocal, unsigned rows, unsigned columns,
                                              unsigned n, unsigned pruned, unsigned m, float* weight, float* errors) {
    size_t at = static_cast<size_t>(blockIdx.x) * (blockDim.x / 32) + threadIdx.x / 32;
    unsigned lane = threadIdx.x % 32;
    if (at >= rows) return;
    Row row;
    load(row, settled, reciprocal, at, columns, lane);
    for (unsigned first = 0; first < columns; first += m) {
        unsigned size = columns - first < m ? columns - first : m;
        choose_of_group(row, first, size, pruned * size / m, lane);
        for (unsigned j = first; j < first + size; j++) eliminate(row, j, u, columns, lane);
    }
    store(row, weight, errors, at, columns, n, lane);
}
