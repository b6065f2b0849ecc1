// What surrounds the products of a block: see `model/ops/norm.rs`, `rotary.rs`, `linear.rs` and `simd.rs`, whose bits these are. Each kernel
// comes for f32, bf16 and f16; values of the last two are widened, the arithmetic is f32, and the result is rounded once.
//
// Matrices are row-major, the tokens of every batch item after one another. 16 threads take a row or a head.
#include "rows.cuh"

// Added to variances and mean squares before their root is taken.
#define EPSILON 1e-6f

// Layer norm without affine parameters, times 1 + scale, plus shift. A batch item of `tokens` rows has its scales and shifts, `width` each, in
// a row of `values` of `stride` numbers, from `scale` and `shift` on.
template <class T>
__device__ void norm_modulate(const T* x, const T* values, unsigned rows, unsigned width, unsigned tokens, unsigned stride, unsigned scale,
                              unsigned shift, T* out) {
    Place place = place_of_thread(rows);
    if (!place.warp_has_one) return;
    size_t row = place.row;
    const T *from = x + row * width, *item = values + row / tokens * stride;
    float count = static_cast<float>(width);
    float mean = sum_of_lanes([=](unsigned j) { return to_f32(from[j]); }, width) / count;
    float variance = sum_of_lanes([=](unsigned j) { float d = to_f32(from[j]) - mean; return d * d; }, width) / count;
    float factor = 1.0f / sqrtf(variance + EPSILON);
    if (!place.has_one) return;
    for (unsigned j = threadIdx.x % SUM_LANES; j < width; j += SUM_LANES)
        from_f32(fmaf((to_f32(from[j]) - mean) * factor, 1.0f + to_f32(item[scale + j]), to_f32(item[shift + j])), &out[row * width + j]);
}

// In place: adds the bias and divides every head by its root mean square, times `weight` (`head` numbers). The bias has a number for each
// feature of a row of `heads` heads.
template <class T>
__device__ void head_norm(T* x, const T* bias, const T* weight, unsigned rows, unsigned heads, unsigned head) {
    Place place = place_of_thread(static_cast<size_t>(rows) * heads);
    if (!place.warp_has_one) return;
    size_t at = place.row;
    T* values = x + at * head;
    const T* of = bias + at % heads * head;
    float squares = sum_of_lanes([=](unsigned j) { float y = to_f32(values[j]) + to_f32(of[j]); return y * y; }, head);
    float factor = 1.0f / sqrtf(squares / static_cast<float>(head) + EPSILON);
    __syncwarp();
    if (!place.has_one) return;
    for (unsigned j = threadIdx.x % SUM_LANES; j < head; j += SUM_LANES)
        from_f32((to_f32(values[j]) + to_f32(of[j])) * factor * to_f32(weight[j]), &values[j]);
}

// In place: turns the pairs of neighbouring features of every head in the last `turned` tokens of each item of `tokens` rows. `cosines` and
// `sines` are turned x pairs, a head has 2 * pairs features. One thread a pair.
template <class T>
__device__ void rotate(T* x, const float* cosines, const float* sines, unsigned items, unsigned tokens, unsigned turned, unsigned width,
                       unsigned pairs) {
    size_t pairs_of_row = width / 2, count = static_cast<size_t>(items) * turned * pairs_of_row;
    size_t step = static_cast<size_t>(gridDim.x) * blockDim.x;
    for (size_t i = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step) {
        size_t row = i / pairs_of_row, pair = i % pairs_of_row, token = row % turned;
        T* at = x + (row / turned * tokens + (tokens - turned) + token) * width + 2 * pair;
        float cosine = cosines[token * pairs + pair % pairs], sine = sines[token * pairs + pair % pairs];
        float a = to_f32(at[0]), b = to_f32(at[1]);
        from_f32(a * cosine - b * sine, &at[0]);
        from_f32(b * cosine + a * sine, &at[1]);
    }
}

// In place: adds the bias (`width` numbers) and takes GELU by its tanh approximation.
template <class T>
__device__ void gelu_of_biased(T* x, const T* bias, unsigned rows, unsigned width) {
    size_t count = static_cast<size_t>(rows) * width, step = static_cast<size_t>(gridDim.x) * blockDim.x;
    for (size_t i = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step)
        from_f32(gelu(to_f32(x[i]) + to_f32(bias[i % width])), &x[i]);
}

// Adds gate * (product + bias) to the residual. An item of `tokens` rows has its `width` gates in a row of `values` of `stride` numbers, from
// `gate` on.
template <class T>
__device__ void add_gated(T* residual, const T* product, const T* bias, const T* values, unsigned rows, unsigned width, unsigned tokens,
                          unsigned stride, unsigned gate) {
    size_t count = static_cast<size_t>(rows) * width, step = static_cast<size_t>(gridDim.x) * blockDim.x;
    for (size_t i = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step) {
        size_t column = i % width;
        float by = to_f32(values[i / width / tokens * stride + gate + column]);
        from_f32(fmaf(by, to_f32(product[i]) + to_f32(bias[column]), to_f32(residual[i])), &residual[i]);
    }
}

// In place: adds the bias (`width` numbers).
template <class T>
__device__ void add_bias(T* x, const T* bias, unsigned rows, unsigned width) {
    size_t count = static_cast<size_t>(rows) * width, step = static_cast<size_t>(gridDim.x) * blockDim.x;
    for (size_t i = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step)
        from_f32(to_f32(x[i]) + to_f32(bias[i % width]), &x[i]);
}

// In place: x / (1 + e^-x).
template <class T>
__device__ void silu(T* x, unsigned rows, unsigned width) {
    size_t count = static_cast<size_t>(rows) * width, step = static_cast<size_t>(gridDim.x) * blockDim.x;
    for (size_t i = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step) {
        float value = to_f32(x[i]), exponent = -value > 80.0f ? 80.0f : -value;
        from_f32(value * reciprocal(1.0f + exponential(exponent)), &x[i]);
    }
}

// In place: adds `rows` of another matrix to each of `times` items of as many rows.
template <class T>
__device__ void add_rows(T* x, const T* added, unsigned times, unsigned rows, unsigned width) {
    size_t item = static_cast<size_t>(rows) * width, count = times * item, step = static_cast<size_t>(gridDim.x) * blockDim.x;
    for (size_t i = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step)
        from_f32(to_f32(x[i]) + to_f32(added[i % item]), &x[i]);
}

// In place: brings every number into -largest..largest. A NaN stays.
template <class T>
__device__ void limit(T* x, unsigned rows, unsigned width, float largest) {
    size_t count = static_cast<size_t>(rows) * width, step = static_cast<size_t>(gridDim.x) * blockDim.x;
    for (size_t i = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step) {
        float value = to_f32(x[i]);
        value = value > largest ? largest : value;
        value = value < -largest ? -largest : value;
        from_f32(value, &x[i]);
    }
}

// Writes the features of two matrices side by side: rows x a and rows x b to rows x (a + b).
template <class T>
__device__ void join_columns(const T* left, const T* right, unsigned rows, unsigned a, unsigned b, T* out) {
    size_t width = static_cast<size_t>(a) + b, count = rows * width, step = static_cast<size_t>(gridDim.x) * blockDim.x;
    for (size_t i = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step) {
        size_t row = i / width, column = i % width;
        out[i] = column < a ? left[row * a + column] : right[row * b + (column - a)];
    }
}

// Writes the softmax of `scale` times each row of scores (rows x keys, f32). The rows of both matrices are `stride` numbers apart; what lies
// behind the keys is neither read nor written.
template <class T>
__device__ void softmax(const float* scores, unsigned rows, unsigned keys, unsigned stride, float scale, T* out) {
    Place place = place_of_thread(rows);
    if (!place.warp_has_one) return;
    const float* row = scores + place.row * stride;
    float largest = __uint_as_float(0xff800000u);
    for (unsigned j = threadIdx.x % SUM_LANES; j < keys; j += SUM_LANES) largest = row[j] > largest ? row[j] : largest;
    for (unsigned by = SUM_LANES / 2; by > 0; by /= 2) {
        float other = __shfl_xor_sync(ALL_LANES, largest, by);
        largest = other > largest ? other : largest;
    }
    float offset = -scale * largest;
    float factor = 1.0f / sum_of_lanes([=](unsigned j) { return exponential(fmaf(scale, row[j], offset)); }, keys);
    if (!place.has_one) return;
    for (unsigned j = threadIdx.x % SUM_LANES; j < keys; j += SUM_LANES)
        from_f32(exponential(fmaf(scale, row[j], offset)) * factor, &out[place.row * stride + j]);
}

#define FOR_TYPE(T)                                                                                                                          \
    extern "C" __global__ void norm_modulate_##T(const VALUE(T) * x, const VALUE(T) * values, unsigned rows, unsigned width, unsigned tokens, \
                                                 unsigned stride, unsigned scale, unsigned shift, VALUE(T) * out) {                          \
        norm_modulate(x, values, rows, width, tokens, stride, scale, shift, out);                                                            \
    }                                                                                                                                        \
    extern "C" __global__ void head_norm_##T(VALUE(T) * x, const VALUE(T) * bias, const VALUE(T) * weight, unsigned rows, unsigned heads,     \
                                             unsigned head) {                                                                                \
        head_norm(x, bias, weight, rows, heads, head);                                                                                       \
    }                                                                                                                                        \
    extern "C" __global__ void rotate_##T(VALUE(T) * x, const float* cosines, const float* sines, unsigned items, unsigned tokens,           \
                                          unsigned turned, unsigned width, unsigned pairs) {                                                 \
        rotate(x, cosines, sines, items, tokens, turned, width, pairs);                                                                      \
    }                                                                                                                                        \
    extern "C" __global__ void gelu_##T(VALUE(T) * x, const VALUE(T) * bias, unsigned rows, unsigned width) {                                \
        gelu_of_biased(x, bias, rows, width);                                                                                                \
    }                                                                                                                                        \
    extern "C" __global__ void add_gated_##T(VALUE(T) * residual, const VALUE(T) * product, const VALUE(T) * bias, const VALUE(T) * values,   \
                                             unsigned rows, unsigned width, unsigned tokens, unsigned stride, unsigned gate) {               \
        add_gated(residual, product, bias, values, rows, width, tokens, stride, gate);                                                       \
    }                                                                                                                                        \
    extern "C" __global__ void add_bias_##T(VALUE(T) * x, const VALUE(T) * bias, unsigned rows, unsigned width) {                            \
        add_bias(x, bias, rows, width);                                                                                                      \
    }                                                                                                                                        \
    extern "C" __global__ void limit_##T(VALUE(T) * x, unsigned rows, unsigned width, float largest) { limit(x, rows, width, largest); }     \
    extern "C" __global__ void silu_##T(VALUE(T) * x, unsigned rows, unsigned width) { silu(x, rows, width); }                               \
    extern "C" __global__ void add_rows_##T(VALUE(T) * x, const VALUE(T) * added, unsigned times, unsigned rows, unsigned width) {           \
        add_rows(x, added, times, rows, width);                                                                                              \
    }                                                                                                                                        \
    extern "C" __global__ void join_columns_##T(const VALUE(T) * left, const VALUE(T) * right, unsigned rows, unsigned a, unsigned b,        \
                                                VALUE(T) * out) {                                                                            \
        join_columns(left, right, rows, a, b, out);                                                                                          \
    }                                                                                                                                        \
    extern "C" __global__ void softmax_##T(const float* scores, unsigned rows, unsigned keys, unsigned stride, float scale,                  \
                                           VALUE(T) * out) {                                                                                 \
        softmax(scores, rows, keys, stride, scale, out);                                                                                     \
    }

FOR_TYPE(f32)
FOR_TYPE(bf16)
FOR_TYPE(f16)
