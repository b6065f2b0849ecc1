// From a Gram's packed sums to the square that its site is solved by: see `gram/square.rs`, `solve/scaled.rs` and `solve/structured/bias.rs`,
// whose numbers these are.
#include "kernels.cuh"

#define LARGEST 3.4028234663852886e38f

// Copies the diagonal of packed sums, of n x n ones.
template <class T>
__device__ void diagonal(const T* sums, unsigned n, T* out) {
    unsigned column = blockIdx.x * blockDim.x + threadIdx.x;
    if (column < n) out[column] = sums[start_of_row(n, column)];
}

extern "C" __global__ void diagonal_exact(const long long* sums, unsigned n, long long* out) { diagonal(sums, n, out); }

extern "C" __global__ void diagonal_f32(const float* sums, unsigned n, float* out) { diagonal(sums, n, out); }

// Copies the last column of packed sums, of n x n ones.
template <class T>
__device__ void last_column(const T* sums, unsigned n, T* out) {
    unsigned row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row < n) out[row] = sums[start_of_row(n, row) + (n - 1 - row)];
}

extern "C" __global__ void last_column_exact(const long long* sums, unsigned n, long long* out) { last_column(sums, n, out); }

extern "C" __global__ void last_column_f32(const float* sums, unsigned n, float* out) { last_column(sums, n, out); }

// Writes the packed sums of the first n features, of n + 1, times `unit` and then times `scale`, to a whole square whose rows are n apart. Where
// there are `means`, moments are about these, and 0 where either feature is `constant`. The grid's x goes over columns, its y over rows.
template <class T>
__device__ void unpack_moments(const T* sums, unsigned n, double unit, double scale, const double* means, const unsigned char* constant,
                               double* square) {
    for (size_t row = blockIdx.y; row < n; row += gridDim.y)
        for (size_t column = blockIdx.x * blockDim.x + threadIdx.x; column < n; column += gridDim.x * blockDim.x) {
            size_t first = row < column ? row : column, second = row < column ? column : row;
            double value = static_cast<double>(sums[start_of_row(n + 1, first) + (second - first)]) * unit * scale;
            if (means) value = constant[row] || constant[column] ? 0.0 : value - means[row] * means[column];
            square[row * n + column] = value;
        }
}

extern "C" __global__ void unpack_moments_exact(const long long* sums, unsigned n, double unit, double scale, const double* means,
                                                const unsigned char* constant, double* square) {
    unpack_moments(sums, n, unit, scale, means, constant, square);
}

extern "C" __global__ void unpack_moments_f32(const float* sums, unsigned n, double unit, double scale, const double* means,
                                              const unsigned char* constant, double* square) {
    unpack_moments(sums, n, unit, scale, means, constant, square);
}

// Writes `scale` times the packed sums to the upper triangle, diagonal included, of a square whose rows are n apart. What lies below the diagonal
// stays as it is. Values that are not finite in f32 are counted in `spoilt`. The grid's x goes over columns, its y over rows.
template <class T>
__device__ void unpack(const T* sums, unsigned n, double scale, float* square, unsigned* spoilt) {
    for (size_t row = blockIdx.y; row < n; row += gridDim.y) {
        const T* of_row = sums + start_of_row(n, row);
        for (size_t column = blockIdx.x * blockDim.x + threadIdx.x; column < n; column += gridDim.x * blockDim.x) {
            if (column < row) continue;
            float value = static_cast<float>(static_cast<double>(of_row[column - row]) * scale);
            if (!(fabsf(value) <= LARGEST)) atomicAdd(spoilt, 1u);
            square[row * n + column] = value;
        }
    }
}

extern "C" __global__ void unpack_exact(const long long* sums, unsigned n, double scale, float* square, unsigned* spoilt) {
    unpack(sums, n, scale, square, spoilt);
}

extern "C" __global__ void unpack_f32(const float* sums, unsigned n, double scale, float* square, unsigned* spoilt) {
    unpack(sums, n, scale, square, spoilt);
}

// Multiplies what lies above the diagonal by the reciprocals of its row and its column, and sets the diagonal to 1. The grid is that of
// `unpack`.
extern "C" __global__ void scale_square(float* square, const float* reciprocal, unsigned n) {
    for (size_t row = blockIdx.y; row < n; row += gridDim.y)
        for (size_t column = blockIdx.x * blockDim.x + threadIdx.x; column < n; column += gridDim.x * blockDim.x) {
            if (column < row) continue;
            float* value = &square[row * n + column];
            *value = column == row ? 1.0f : *value * reciprocal[row] * reciprocal[column];
        }
}
