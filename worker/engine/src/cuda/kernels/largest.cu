// The lowest values of a matrix, exactly so many, ties by (column, row): see `solve/largest.rs` and `solve/select.rs`.
//
// A value's key is the bits of |x|, or of |x * factor| with a factor for each column, as a number: keys sort as the values do. Three passes
// count the keys that share a prefix by their next digit and choose the digit at which the last of the lowest lies. Among the keys equal to
// that one, those before a place (column, row) go. All counts are integers, so the order of threads does not matter.
#include "selection.cuh"

// Bins of a histogram: a digit has at most 11 bits.
#define BINS 2048u

// Threads of the blocks that look for a place among counts.
#define LOOKING 256u

// Sets `place` to the first of `count` places up to which the counts add up to `rank`, and `before` to the sum of those before it. The sum
// over all places is at least `rank`, which is at least 1. By all threads of a block of LOOKING; `scan`, `place` and `before` are shared.
template <class Counted>
__device__ void find_place(Counted counted, size_t count, unsigned rank, unsigned* scan, unsigned* place, unsigned* before) {
    unsigned seen = 0;
    for (size_t first = 0; first < count && seen < rank; first += LOOKING) {
        size_t i = first + threadIdx.x;
        unsigned mine = i < count ? counted(i) : 0;
        scan[threadIdx.x] = mine;
        __syncthreads();
        for (unsigned step = 1; step < LOOKING; step *= 2) {
            unsigned left = threadIdx.x >= step ? scan[threadIdx.x - step] : 0;
            __syncthreads();
            scan[threadIdx.x] += left;
            __syncthreads();
        }
        unsigned up_to = seen + scan[threadIdx.x];
        if (up_to >= rank && up_to - mine < rank) {
            *place = static_cast<unsigned>(i);
            *before = up_to - mine;
        }
        seen += scan[LOOKING - 1];
        __syncthreads();
    }
}

// Begins to select the `rank` lowest values, at most all: clears the histogram and the counts of ties of `columns`.
extern "C" __global__ void begin_selection(Selection* selection, unsigned rank, unsigned* histogram, unsigned* ties, unsigned columns) {
    unsigned first = blockIdx.x * blockDim.x + threadIdx.x, step = gridDim.x * blockDim.x;
    for (unsigned bin = first; bin < BINS; bin += step) histogram[bin] = 0;
    for (unsigned column = first; column < columns; column += step) ties[column] = 0;
    if (first == 0) *selection = Selection{rank, 0, 0, 0, 0};
}

// Adds to the histogram: how many keys with the prefix have which digit of `bits` bits at `shift`. The grid's x goes over columns, its y
// over rows. Fewer than 2^32 values.
extern "C" __global__ void count_keys(const float* matrix, unsigned rows, unsigned columns, unsigned stride, const float* factors,
                                      const Selection* selection, unsigned shift, unsigned bits, unsigned* histogram) {
    __shared__ unsigned counts[BINS];
    for (unsigned bin = threadIdx.x; bin < BINS; bin += blockDim.x) counts[bin] = 0;
    __syncthreads();
    Keys keys{matrix, rows, columns, stride, factors};
    unsigned above = shift + bits, prefix = selection->key;
    for (size_t row = blockIdx.y; row < rows; row += gridDim.y)
        for (size_t column = blockIdx.x * blockDim.x + threadIdx.x; column < columns; column += gridDim.x * blockDim.x) {
            unsigned key = keys.at(row, column);
            if (key >> above == prefix >> above) atomicAdd(&counts[(key >> shift) & ((1u << bits) - 1)], 1u);
        }
    __syncthreads();
    for (unsigned bin = threadIdx.x; bin < BINS; bin += blockDim.x)
        if (counts[bin] != 0) atomicAdd(&histogram[bin], counts[bin]);
}

// Chooses the digit of `bits` bits at `shift` and clears the histogram for the next one. One block of LOOKING threads.
extern "C" __global__ void choose_digit(Selection* selection, unsigned shift, unsigned bits, unsigned* histogram) {
    __shared__ unsigned scan[LOOKING], digit, before;
    unsigned rank = selection->rank;
    if (rank != 0) find_place([=](size_t bin) { return histogram[bin]; }, 1u << bits, rank, scan, &digit, &before);
    __syncthreads();
    if (threadIdx.x == 0 && rank != 0) {
        selection->rank = rank - before;
        selection->key |= digit << shift;
        selection->equal = histogram[digit];
    }
    __syncthreads();
    for (unsigned bin = threadIdx.x; bin < BINS; bin += LOOKING) histogram[bin] = 0;
}

// Counts the keys equal to the selection's in each column, where some of them go and others stay. The grid is that of count_keys.
extern "C" __global__ void count_ties(const float* matrix, unsigned rows, unsigned columns, unsigned stride, const float* factors,
                                      const Selection* selection, unsigned* ties) {
    if (selection->rank == 0 || selection->rank == selection->equal) return;
    Keys keys{matrix, rows, columns, stride, factors};
    for (size_t column = blockIdx.x * blockDim.x + threadIdx.x; column < columns; column += gridDim.x * blockDim.x) {
        unsigned count = 0;
        for (size_t row = blockIdx.y; row < rows; row += gridDim.y) count += keys.at(row, column) == selection->key;
        if (count != 0) atomicAdd(&ties[column], count);
    }
}

// Ends the selection: before which place keys equal to its own go. One block of LOOKING threads.
extern "C" __global__ void end_selection(const float* matrix, unsigned rows, unsigned columns, unsigned stride, const float* factors,
                                         Selection* selection, const unsigned* ties) {
    __shared__ unsigned scan[LOOKING], end_column, end_row, before, before_in_column;
    Keys keys{matrix, rows, columns, stride, factors};
    unsigned rank = selection->rank, equal = selection->equal, key = selection->key;
    if (threadIdx.x == 0) {
        end_column = rank == 0 ? 0 : columns;
        end_row = 0;
    }
    __syncthreads();
    if (rank != 0 && rank != equal) {
        find_place([=](size_t column) { return ties[column]; }, columns, rank, scan, &end_column, &before);
        __syncthreads();
        size_t column = end_column;
        auto tie = [=](size_t row) -> unsigned { return keys.at(row, column) == key; };
        find_place(tie, rows, rank - before, scan, &end_row, &before_in_column);
        __syncthreads();
        if (threadIdx.x == 0) end_row += 1;
    }
    if (threadIdx.x == 0) {
        selection->end_column = end_column;
        selection->end_row = end_row;
    }
}

// Sets the values that go to 0. The grid is that of count_keys.
extern "C" __global__ void zero_lowest(float* matrix, unsigned rows, unsigned columns, unsigned stride, const float* factors,
                                       const Selection* selection) {
    Keys keys{matrix, rows, columns, stride, factors};
    for (size_t row = blockIdx.y; row < rows; row += gridDim.y)
        for (size_t column = blockIdx.x * blockDim.x + threadIdx.x; column < columns; column += gridDim.x * blockDim.x)
            if (goes(*selection, keys.at(row, column), row, column)) matrix[row * stride + column] = 0.0f;
}

// Lowers `place` to the first value that is not finite, in row-major order. It is all ones before.
extern "C" __global__ void first_not_finite(const float* matrix, unsigned rows, unsigned columns, unsigned long long* place) {
    size_t count = static_cast<size_t>(rows) * columns, step = static_cast<size_t>(gridDim.x) * blockDim.x;
    for (size_t i = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step)
        if ((__float_as_uint(matrix[i]) & 0x7f800000u) == 0x7f800000u) {
            atomicMin(place, static_cast<unsigned long long>(i));
            // What comes after is later.
            return;
        }
}
