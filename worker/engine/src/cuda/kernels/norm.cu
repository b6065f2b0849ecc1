// What surrounds the products of a block: see `model/ops/norm.rs`, `rotary.rs`, `linear.rs` and `simd.rs`, whose bits these are. Each kernel
// comes for f32, bf16 and f16; values of the last two are widened, the arithmetic is f32, and the result is rounded once.
//
// Matrices are row-major, the tokens of every batch item after one another. 16 threads take a row or a head of what sums over these, see
// `for_each_part` for the others.
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
    float mean = sum_of_lanes([=](size_t j) { return to_f32(from[j]); }, width) / count;
    float variance = sum_of_lanes([=](size_t j) { float d = to_f32(from[j]) - mean; return d * d; }, width) / count;
    float factor = 1.0f / sqrtf(variance + EPSILON);
    if (!place.has_one) return;
    bool at_once = are_at_once<T>(width | stride | scale | shift, x, values, out);
    for_each_of_row<PART<T>>(at_once, width, [=](auto part, size_t j) {
        auto value = read(part, from + j), by = read(part, item + scale + j), added = read(part, item + shift + j);
        write(part, out + row * width + j, [&](unsigned i) { return fmaf((value[i] - mean) * factor, 1.0f + by[i], added[i]); });
    });
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
    float squares = sum_of_lanes([=](size_t j) { float y = to_f32(values[j]) + to_f32(of[j]); return y * y; }, head);
    float factor = 1.0f / sqrtf(squares / static_cast<float>(head) + EPSILON);
    __syncwarp();
    if (!place.has_one) return;
    // Half a part: a head of 64 features has one for each thread.
    for_each_of_row<PART<T> / 2>(are_at_once<T>(head, x, bias, weight), head, [=](auto part, size_t j) {
        auto value = read(part, values + j), added = read(part, of + j), by = read(part, weight + j);
        write(part, values + j, [&](unsigned i) { return (value[i] + added[i]) * factor * by[i]; });
    });
}

// In place: turns the pairs of neighbouring features of every head in the last `turned` tokens of each item of `tokens` rows. `cosines` and
// `sines` are turned x pairs, a head has 2 * pairs features.
template <class T>
__device__ void rotate(T* x, const float* cosines, const float* sines, unsigned items, unsigned tokens, unsigned turned, unsigned width,
                       unsigned pairs) {
    // A head is made of whole parts.
    bool at_once = are_at_once<T>(2 * pairs, x, cosines, sines);
    for_each_part<T, 2>(at_once, turned, width, [=](auto part, size_t token, size_t column) {
        size_t pair = token * pairs + static_cast<unsigned>(column) / 2 % pairs;
        auto cosine = read(part.half(), cosines + pair), sine = read(part.half(), sines + pair);
        for (size_t item = 0; item < items; item++) {
            T* at = x + (item * tokens + (tokens - turned) + token) * width + column;
            auto value = read(part, at);
            write(part, at, [&](unsigned j) {
                float by = cosine[j / 2], other = sine[j / 2];
                return j % 2 == 0 ? value[j] * by - value[j + 1] * other : value[j] * by + value[j - 1] * other;
            });
        }
    });
}

// In place: adds the bias (`width` numbers) and takes GELU by its tanh approximation.
template <class T>
__device__ void gelu_of_biased(T* x, const T* bias, unsigned rows, unsigned width) {
    for_each_part<T>(are_at_once<T>(width, x, bias), rows, width, [=](auto part, size_t row, size_t column) {
        T* at = x + row * width + column;
        auto value = read(part, at), added = read(part, bias + column);
        write(part, at, [&](unsigned j) { return gelu(value[j] + added[j]); });
    });
}

// Adds gate * (product + bias) to the residual. An item of `tokens` rows has its `width` gates in a row of `values` of `stride` numbers, from
// `gate` on.
template <class T>
__device__ void add_gated(T* residual, const T* product, const T* bias, const T* values, unsigned rows, unsigned width, unsigned tokens,
                          unsigned stride, unsigned gate) {
    bool at_once = are_at_once<T>(width | stride | gate, residual, product, bias, values);
    for_each_part<T>(at_once, rows, width, [=](auto part, size_t row, size_t column) {
        size_t at = row * width + column, item = static_cast<unsigned>(row) / tokens;
        auto value = read(part, residual + at), of_product = read(part, product + at), added = read(part, bias + column);
        auto by = read(part, values + item * stride + gate + column);
        write(part, residual + at, [&](unsigned j) { return fmaf(by[j], of_product[j] + added[j], value[j]); });
    });
}

// In place: adds the bias (`width` numbers).
template <class T>
__device__ void add_bias(T* x, const T* bias, unsigned rows, unsigned width) {
    for_each_part<T>(are_at_once<T>(width, x, bias), rows, width, [=](auto part, size_t row, size_t column) {
        T* at = x + row * width + column;
        auto value = read(part, at), added = read(part, bias + column);
        write(part, at, [&](unsigned j) { return value[j] + added[j]; });
    });
}

// In place: x / (1 + e^-x).
template <class T>
__device__ void silu(T* x, unsigned rows, unsigned width) {
    for_each_part<T>(are_at_once<T>(width, x), rows, width, [=](auto part, size_t row, size_t column) {
        T* at = x + row * width + column;
        auto value = read(part, at);
        write(part, at, [&](unsigned j) {
            float exponent = -value[j] > 80.0f ? 80.0f : -value[j];
            return value[j] * reciprocal(1.0f + exponential(exponent));
        });
    });
}

// In place: adds `rows` of another matrix to each of `times` items of as many rows.
template <class T>
__device__ void add_rows(T* x, const T* added, unsigned times, unsigned rows, unsigned width) {
    for_each_part<T>(are_at_once<T>(width, x, added), rows, width, [=](auto part, size_t row, size_t column) {
        auto of_row = read(part, added + row * width + column);
        for (size_t item = 0; item < times; item++) {
            T* at = x + (item * rows + row) * width + column;
            auto value = read(part, at);
            write(part, at, [&](unsigned j) { return value[j] + of_row[j]; });
        }
    });
}

// In place: brings every number into -largest..largest. A NaN stays.
template <class T>
__device__ void limit(T* x, unsigned rows, unsigned width, float largest) {
    for_each_part<T>(are_at_once<T>(width, x), rows, width, [=](auto part, size_t row, size_t column) {
        T* at = x + row * width + column;
        auto value = read(part, at);
        write(part, at, [&](unsigned j) {
            float below = value[j] > largest ? largest : value[j];
            return below < -largest ? -largest : below;
        });
    });
}

// Writes the features of two matrices side by side: rows x a and rows x b to rows x (a + b).
template <class T>
__device__ void join_columns(const T* left, const T* right, unsigned rows, unsigned a, unsigned b, T* out) {
    size_t width = static_cast<size_t>(a) + b;
    for_each_part<T>(are_at_once<T>(a | b, left, right, out), rows, width, [=](auto part, size_t row, size_t column) {
        copy(part, column < a ? left + row * a + column : right + row * b + (column - a), out + row * width + column);
    });
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
    float factor = 1.0f / sum_of_lanes([=](size_t j) { return exponential(fmaf(scale, row[j], offset)); }, keys);
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
