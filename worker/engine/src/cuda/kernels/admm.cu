// Between two products of alternating directions: see `solve/admm.rs`. All matrices are rows x n; one thread takes a weight at a time, the
// grid's x goes over columns, its y over rows.
#include "selection.cuh"

// `dense` becomes the weight with its dead columns at 0; the weight becomes dense * scale: V0.
extern "C" __global__ void scale_weight(float* weight, unsigned rows, unsigned n, const float* scale, const unsigned char* dead, float* dense) {
    for (size_t row = blockIdx.y; row < rows; row += gridDim.y)
        for (size_t column = blockIdx.x * blockDim.x + threadIdx.x; column < n; column += gridDim.x * blockDim.x) {
            size_t i = row * n + column;
            float w = dead[column] ? 0.0f : weight[i];
            dense[i] = w;
            weight[i] = w * scale[column];
        }
}

// From y = X + U in `weight`: Z are the weights that stay and U those that go, the latter taken `times`. Leaves Z - U - V0 in `change` and
// V0 + U in `weight`, to which rho * change * (A + rho I)^-1 is to be added. A weight of 0 counts as gone.
template <class Goes>
__device__ void split(float* weight, float* change, const float* dense, const float* scale, unsigned rows, unsigned n, float times, Goes goes) {
    for (size_t row = blockIdx.y; row < rows; row += gridDim.y)
        for (size_t column = blockIdx.x * blockDim.x + threadIdx.x; column < n; column += gridDim.x * blockDim.x) {
            size_t i = row * n + column;
            float y = weight[i], v0 = dense[i] * scale[column];
            unsigned key = __float_as_uint(y) & 0x7fffffffu;
            bool stays = key != 0 && !goes(key, row, column);
            float z = stays ? y : 0.0f, u = stays ? 0.0f : times * y;
            change[i] = z - u - v0;
            weight[i] = u + v0;
        }
}

// Leaves W = Z / s in `weight`.
template <class Goes>
__device__ void finish(float* weight, const float* scale, unsigned rows, unsigned n, Goes goes) {
    for (size_t row = blockIdx.y; row < rows; row += gridDim.y)
        for (size_t column = blockIdx.x * blockDim.x + threadIdx.x; column < n; column += gridDim.x * blockDim.x) {
            size_t i = row * n + column;
            float y = weight[i];
            unsigned key = __float_as_uint(y) & 0x7fffffffu;
            weight[i] = key != 0 && !goes(key, row, column) ? y / scale[column] : 0.0f;
        }
}

// With the lowest of all going.
extern "C" __global__ void split_lowest(float* weight, float* change, const float* dense, const float* scale, unsigned rows, unsigned n,
                                        float times, const Selection* selection) {
    Selection of = *selection;
    split(weight, change, dense, scale, rows, n, times,
          [=](unsigned key, size_t row, size_t column) { return goes(of, key, row, column); });
}

extern "C" __global__ void finish_lowest(float* weight, const float* scale, unsigned rows, unsigned n, const Selection* selection) {
    Selection of = *selection;
    finish(weight, scale, rows, n, [=](unsigned key, size_t row, size_t column) { return goes(of, key, row, column); });
}

// With those going that have a 0 in `mask`.
extern "C" __global__ void split_masked(float* weight, float* change, const float* dense, const float* scale, unsigned rows, unsigned n,
                                        float times, const unsigned char* mask) {
    split(weight, change, dense, scale, rows, n, times, [=](unsigned, size_t row, size_t column) { return mask[row * n + column] == 0; });
}

extern "C" __global__ void finish_masked(float* weight, const float* scale, unsigned rows, unsigned n, const unsigned char* mask) {
    finish(weight, scale, rows, n, [=](unsigned, size_t row, size_t column) { return mask[row * n + column] == 0; });
}
