// N of every M consecutive weights of a row go: those of smallest |x|, of equal ones the first; of a shorter tail floor(N * tail / M). See
// `solve/largest.rs`, `drop_smallest`.
#include "kernels.cuh"

// Writes to `mask` (rows x n) which weights stay: 1, the others 0. One thread for each weight, which finds its rank in its group: 2 m
// operations. The grid's x goes over columns, its y over rows.
extern "C" __global__ void mask_n_to_m(const float* matrix, unsigned rows, unsigned n, unsigned pruned, unsigned m, unsigned char* mask) {
    for (size_t row = blockIdx.y; row < rows; row += gridDim.y)
        for (size_t column = blockIdx.x * blockDim.x + threadIdx.x; column < n; column += gridDim.x * blockDim.x) {
            const float* values = matrix + row * n;
            size_t first = column / m * m, size = n - first < m ? n - first : m;
            unsigned key = __float_as_uint(values[column]) & 0x7fffffffu;
            size_t rank = 0;
            for (size_t other = first; other < first + size; other++) {
                unsigned than = __float_as_uint(values[other]) & 0x7fffffffu;
                rank += than < key || (than == key && other < column);
            }
            mask[row * n + column] = rank >= pruned * size / m;
        }
}

// Sets what does not stay to 0.
extern "C" __global__ void zero_unmasked(float* matrix, unsigned rows, unsigned n, const unsigned char* mask) {
    size_t count = static_cast<size_t>(rows) * n, step = static_cast<size_t>(gridDim.x) * blockDim.x;
    for (size_t i = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step)
        if (!mask[i]) matrix[i] = 0.0f;
}
