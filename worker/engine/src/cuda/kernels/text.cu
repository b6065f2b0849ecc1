// What surrounds the products of a text encoder's layer. Its stream of tokens, norms, softmax and activation functions are f32; what is written
// for a product is rounded once, to the product's type, for which each kernel comes. Products are read in f32.
//
// Matrices are row-major. 16 threads take a row of what sums over rows, see `for_each_part` for the others.
#include "rows.cuh"

// Layer norm: scales a row to a mean of 0 and a variance of 1, then by a weight, and adds a bias.
template <class T>
__device__ void layer_norm(const float* x, const float* weight, const float* bias, unsigned rows, unsigned width, float epsilon, T* out) {
    Place place = place_of_thread(rows);
    if (!place.warp_has_one) return;
    const float* from = x + place.row * width;
    float count = static_cast<float>(width);
    float mean = sum_of_lanes([=](size_t j) { return from[j]; }, width) / count;
    float variance = sum_of_lanes([=](size_t j) { float d = from[j] - mean; return d * d; }, width) / count;
    float factor = 1.0f / sqrtf(variance + epsilon);
    if (!place.has_one) return;
    for (unsigned j = threadIdx.x % SUM_LANES; j < width; j += SUM_LANES)
        from_f32(fmaf((from[j] - mean) * factor, weight[j], bias[j]), &out[place.row * width + j]);
}

// Scales a row to a root mean square of 1, then by a weight.
template <class T>
__device__ void rms_norm(const float* x, const float* weight, unsigned rows, unsigned width, float epsilon, T* out) {
    Place place = place_of_thread(rows);
    if (!place.warp_has_one) return;
    const float* from = x + place.row * width;
    float squares = sum_of_lanes([=](size_t j) { return from[j] * from[j]; }, width);
    float factor = 1.0f / sqrtf(squares / static_cast<float>(width) + epsilon);
    if (!place.has_one) return;
    for (unsigned j = threadIdx.x % SUM_LANES; j < width; j += SUM_LANES)
        from_f32(from[j] * factor * weight[j], &out[place.row * width + j]);
}

// Phi(x), of a normal distribution, to within 2e-7: the error function by Abramowitz and Stegun, 7.1.26.
__device__ inline float normal_share(float x) {
    float distance = fabsf(x) * 0.70710678f;
    distance = distance > 9.0f ? 9.0f : distance;
    float t = reciprocal(fmaf(0.3275911f, distance, 1.0f));
    float series = 1.061405429f;
    series = fmaf(t, series, -1.453152027f);
    series = fmaf(t, series, 1.421413741f);
    series = fmaf(t, series, -0.284496736f);
    series = fmaf(t, series, 0.254829592f);
    float beyond = 0.5f * t * series * exponential(-distance * distance);
    return x < 0.0f ? beyond : 1.0f - beyond;
}

// x / (1 + e^(-slope x)).
__device__ inline float sigmoid_share(float x, float slope) {
    float exponent = -slope * x;
    exponent = exponent > 80.0f ? 80.0f : exponent;
    return x * reciprocal(1.0f + exponential(exponent));
}

// The activation functions, by the numbers that `cuda/text.rs` gives them.
__device__ inline float activation(float x, unsigned function) {
    switch (function) {
        case 1: return sigmoid_share(x, 1.702f);
        case 2: return x * normal_share(x);
        case 3: return gelu(x);
        case 4: return x < 0.0f ? 0.0f : x;
        case 5: return sigmoid_share(x, 1.0f);
        default: return x;
    }
}

// Writes function(product + bias) * gate. The bias has `width` numbers, the gate is another product; either may be missing.
template <class T>
__device__ void finish_product(const float* product, const float* bias, const float* gate, unsigned rows, unsigned width, unsigned function,
                               T* out) {
    for_each_part<T>(are_at_once<T>(width, product, bias, gate, out), rows, width, [=](auto part, size_t row, size_t column) {
        size_t at = row * width + column;
        auto value = read(part, product + at);
        decltype(value) added = {}, by = {};
        if (bias != nullptr) added = read(part, bias + column);
        if (gate != nullptr) by = read(part, gate + at);
        write(part, out + at, [&](unsigned j) {
            float activated = activation(bias == nullptr ? value[j] : value[j] + added[j], function);
            return gate == nullptr ? activated : activated * by[j];
        });
    });
}

// Writes the softmax of `scale` times each row of scores plus its bias. Row i of rows has row i % biases of the bias (biases x keys). The rows of
// scores and of what is written are `stride` numbers apart; what lies behind the keys is neither read nor written. A key whose bias is minus
// infinity gets no share.
template <class T>
__device__ void biased_softmax(const float* scores, const float* bias, unsigned rows, unsigned biases, unsigned keys, unsigned stride, float scale,
                               T* out) {
    Place place = place_of_thread(rows);
    if (!place.warp_has_one) return;
    const float *row = scores + place.row * stride, *added = bias + place.row % biases * keys;
    const float nothing = __uint_as_float(0xff800000u);
    float largest = nothing;
    for (unsigned j = threadIdx.x % SUM_LANES; j < keys; j += SUM_LANES) {
        float score = fmaf(scale, row[j], added[j]);
        largest = score > largest ? score : largest;
    }
    for (unsigned by = SUM_LANES / 2; by > 0; by /= 2) {
        float other = __shfl_xor_sync(ALL_LANES, largest, by);
        largest = other > largest ? other : largest;
    }
    auto weight = [=](size_t j) { return added[j] == nothing ? 0.0f : exponential(fmaf(scale, row[j], added[j]) - largest); };
    float factor = 1.0f / sum_of_lanes(weight, keys);
    if (!place.has_one) return;
    for (unsigned j = threadIdx.x % SUM_LANES; j < keys; j += SUM_LANES) from_f32(weight(j) * factor, &out[place.row * stride + j]);
}

// Writes a matrix in f32.
template <class T>
__device__ void widen(const T* from, unsigned rows, unsigned width, float* to) {
    for_each_part<T>(are_at_once<T>(width, from, to), rows, width, [=](auto part, size_t row, size_t column) {
        size_t at = row * width + column;
        auto value = read(part, from + at);
        write(part, to + at, [&](unsigned j) { return value[j]; });
    });
}

// The same in bf16.
template <class T>
__device__ void round_to_bf16(const T* from, unsigned rows, unsigned width, bf16* to) {
    for_each_part<bf16>(are_at_once<bf16>(width, from, to), rows, width, [=](auto part, size_t row, size_t column) {
        size_t at = row * width + column;
        auto value = read(part, from + at);
        write(part, to + at, [&](unsigned j) { return value[j]; });
    });
}

#define TEXT_FOR_TYPE(T)                                                                                                                      \
    extern "C" __global__ void layer_norm_##T(const float* x, const float* weight, const float* bias, unsigned rows, unsigned width,           \
                                              float epsilon, VALUE(T) * out) {                                                                \
        layer_norm(x, weight, bias, rows, width, epsilon, out);                                                                              \
    }                                                                                                                                        \
    extern "C" __global__ void rms_norm_##T(const float* x, const float* weight, unsigned rows, unsigned width, float epsilon,                \
                                            VALUE(T) * out) {                                                                                \
        rms_norm(x, weight, rows, width, epsilon, out);                                                                                      \
    }                                                                                                                                        \
    extern "C" __global__ void finish_product_##T(const float* product, const float* bias, const float* gate, unsigned rows, unsigned width,  \
                                                  unsigned function, VALUE(T) * out) {                                                       \
        finish_product(product, bias, gate, rows, width, function, out);                                                                     \
    }                                                                                                                                        \
    extern "C" __global__ void biased_softmax_##T(const float* scores, const float* bias, unsigned rows, unsigned biases, unsigned keys,      \
                                                  unsigned stride, float scale, VALUE(T) * out) {                                            \
        biased_softmax(scores, bias, rows, biases, keys, stride, scale, out);                                                                \
    }                                                                                                                                        \
    extern "C" __global__ void widen_##T(const VALUE(T) * from, unsigned rows, unsigned width, float* to) { widen(from, rows, width, to); }  \
    extern "C" __global__ void round_to_bf16_##T(const VALUE(T) * from, unsigned rows, unsigned width, bf16* to) {                           \
        round_to_bf16(from, rows, width, to);                                                                                                \
    }

TEXT_FOR_TYPE(f32)
TEXT_FOR_TYPE(bf16)
TEXT_FOR_TYPE(f16)
