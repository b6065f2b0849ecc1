// Which values of a matrix go: what the kernels of largest.cu find out, for those that act on it.
#pragma once
#include "kernels.cuh"

// Which values go: those whose key is below `key`, and those with that key that lie before (end_column, end_row).
struct Selection {
    // How many of the keys that share the prefix go.
    unsigned rank;
    // The digits chosen so far, the others being 0; at last the key.
    unsigned key;
    // At last, how many values have that key.
    unsigned equal;
    unsigned end_column, end_row;
};

// A matrix within a wider one: its rows are `stride` apart. `factors` holds one for each column, or is null.
struct Keys {
    const float* matrix;
    size_t rows, columns, stride;
    const float* factors;

    __device__ unsigned at(size_t row, size_t column) const {
        float x = matrix[row * stride + column];
        if (factors != nullptr) x *= factors[column];
        return __float_as_uint(x) & 0x7fffffffu;
    }
};

__device__ inline bool goes(const Selection& selection, unsigned key, unsigned row, unsigned column) {
    if (key != selection.key) return key < selection.key;
    return column < selection.end_column || (column == selection.end_column && row < selection.end_row);
}
