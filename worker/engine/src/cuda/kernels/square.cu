// Square matrices of a site (n x n, row-major, rows n apart), between a factorisation and the products that use it: see `solve/shifted.rs`.
#include "kernels.cuh"

// Rows and columns of a tile that a block transposes.
#define SIDE 32u

#define LARGEST_F64 1.7976931348623157e308

// Sets the diagonal to `value`.
extern "C" __global__ void set_diagonal_f32(float* square, unsigned n, float value) {
    size_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) square[i * n + i] = value;
}

extern "C" __global__ void set_diagonal_f64(double* square, unsigned n, double value) {
    size_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) square[i * n + i] = value;
}

// Adds `added` to the diagonal. Values of the upper triangle that are not finite are counted in `spoilt`. The grid's x goes over columns, its
// y over rows.
extern "C" __global__ void damp_upper(double* square, unsigned n, double added, unsigned* spoilt) {
    for (size_t row = blockIdx.y; row < n; row += gridDim.y)
        for (size_t column = blockIdx.x * blockDim.x + threadIdx.x; column < n; column += gridDim.x * blockDim.x) {
            double* value = &square[row * n + column];
            if (column < row) continue;
            if (column == row) *value += added;
            if (!(fabs(*value) <= LARGEST_F64)) atomicAdd(spoilt, 1u);
        }
}

// Writes the upper triangle of `upper`, and its mirror image below the diagonal, to `out`, which may be the same matrix. A block takes a tile,
// whose column is blockIdx.x and whose row is blockIdx.y, and that tile's mirror image.
template <class From, class To>
__device__ void mirror(const From* upper, To* out, unsigned n) {
    __shared__ To tile[SIDE][SIDE + 1];
    if (blockIdx.y > blockIdx.x) return;
    unsigned first_row = blockIdx.y * SIDE, first_column = blockIdx.x * SIDE;
    for (unsigned k = threadIdx.y; k < SIDE; k += blockDim.y) {
        size_t row = first_row + k, column = first_column + threadIdx.x;
        tile[k][threadIdx.x] = row <= column && column < n ? static_cast<To>(upper[row * n + column]) : To(0);
    }
    __syncthreads();
    for (unsigned k = threadIdx.y; k < SIDE; k += blockDim.y) {
        size_t row = first_row + k, column = first_column + threadIdx.x;
        if (row <= column && column < n) out[row * n + column] = tile[k][threadIdx.x];
        // Of the mirror image: row and column change places.
        size_t lower_row = first_column + k, lower_column = first_row + threadIdx.x;
        if (lower_row > lower_column && lower_row < n) out[lower_row * n + lower_column] = tile[threadIdx.x][k];
    }
}

extern "C" __global__ void mirror_upper_f32(float* square, unsigned n) { mirror(square, square, n); }
extern "C" __global__ void mirror_upper_f64(double* square, unsigned n) { mirror(square, square, n); }

// From f64 to f32.
extern "C" __global__ void narrow_upper(const double* upper, float* out, unsigned n) { mirror(upper, out, n); }

// From f32 to f64, `count` values.
extern "C" __global__ void widen_square(const float* from, double* to, unsigned long long count) {
    size_t step = static_cast<size_t>(gridDim.x) * blockDim.x;
    for (size_t i = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step) to[i] = from[i];
}

// Copies `columns` columns of a matrix whose rows are `stride` apart to one whose rows are `columns` apart. The grid's x goes over columns, its
// y over rows.
extern "C" __global__ void copy_columns(const float* from, float* to, unsigned rows, unsigned columns, unsigned stride) {
    for (size_t row = blockIdx.y; row < rows; row += gridDim.y)
        for (size_t column = blockIdx.x * blockDim.x + threadIdx.x; column < columns; column += gridDim.x * blockDim.x)
            to[row * columns + column] = from[row * stride + column];
}
