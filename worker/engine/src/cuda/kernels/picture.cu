// What surrounds the products of a picture's decoder, in f32. A picture is a matrix: a row for each pixel, from left to right and from top to
// bottom, and a column for each channel.
#include "rows.cuh"

// Pixels that one thread sums of a channel, as `device/memory.rs` has it.
#define PIXELS_OF_PART 1024u

// Threads of a block that sums a group.
#define SUM_THREADS 256u

// Lays out what each of `count` pixels from pixel `first` on is made of in a convolution of three by three: nine pixels with their channels, one
// after another. The picture that is convolved is `height x width` pixels, each of them `scale * scale` times; what is beyond it is 0.
extern "C" __global__ void gather_patches(const float* x, unsigned height, unsigned width, unsigned channels, unsigned scale, unsigned first,
                                          unsigned count, float* out) {
    unsigned rows = height * scale, columns = width * scale;
    size_t all = static_cast<size_t>(count) * 9 * channels, step = static_cast<size_t>(gridDim.x) * blockDim.x;
    for (size_t i = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < all; i += step) {
        size_t place = i / channels;
        unsigned channel = static_cast<unsigned>(i % channels), part = static_cast<unsigned>(place % 9);
        unsigned pixel = first + static_cast<unsigned>(place / 9);
        // Before the first one they wrap around, far beyond the last one.
        unsigned row = pixel / columns + part / 3 - 1, column = pixel % columns + part % 3 - 1;
        bool is_inside = row < rows && column < columns;
        size_t from = static_cast<size_t>(row / scale) * width + column / scale;
        out[i] = is_inside ? x[from * channels + channel] : 0.0f;
    }
}

// Sums each channel of a part of the pixels, and its squares: two numbers for each channel, channel after channel, part after part.
extern "C" __global__ void channel_sums(const float* x, unsigned pixels, unsigned channels, double* sums) {
    unsigned channel = blockIdx.x * blockDim.x + threadIdx.x, first = blockIdx.y * PIXELS_OF_PART;
    if (channel >= channels) return;
    unsigned end = pixels - first < PIXELS_OF_PART ? pixels : first + PIXELS_OF_PART;
    double sum = 0.0, squares = 0.0;
    for (unsigned pixel = first; pixel < end; pixel++) {
        double value = x[static_cast<size_t>(pixel) * channels + channel];
        sum += value;
        squares += value * value;
    }
    double* to = sums + (static_cast<size_t>(blockIdx.y) * channels + channel) * 2;
    to[0] = sum;
    to[1] = squares;
}

// Of each group of consecutive channels, a block for each: the mean, and one over the root of the variance plus epsilon.
extern "C" __global__ void group_statistics(const double* sums, unsigned parts, unsigned channels, unsigned pixels, float epsilon,
                                            float* statistics) {
    __shared__ double sum_of[SUM_THREADS], squares_of[SUM_THREADS];
    unsigned thread = threadIdx.x, of_group = channels / gridDim.x;
    size_t count = static_cast<size_t>(parts) * of_group;
    double sum = 0.0, squares = 0.0;
    for (size_t i = thread; i < count; i += SUM_THREADS) {
        const double* from = sums + (i / of_group * channels + blockIdx.x * of_group + i % of_group) * 2;
        sum += from[0];
        squares += from[1];
    }
    sum_of[thread] = sum;
    squares_of[thread] = squares;
    __syncthreads();
    for (unsigned by = SUM_THREADS / 2; by > 0; by /= 2) {
        if (thread < by) {
            sum_of[thread] += sum_of[thread + by];
            squares_of[thread] += squares_of[thread + by];
        }
        __syncthreads();
    }
    if (thread > 0) return;
    double values = static_cast<double>(pixels) * of_group, mean = sum_of[0] / values;
    double variance = squares_of[0] / values - mean * mean;
    // Rounding may leave a little less than nothing of equal values.
    variance = variance < 0.0 ? 0.0 : variance;
    statistics[2 * blockIdx.x] = static_cast<float>(mean);
    statistics[2 * blockIdx.x + 1] = static_cast<float>(1.0 / sqrt(variance + static_cast<double>(epsilon)));
}

// Writes every number less its group's mean, times its group's factor and its channel's weight, plus its channel's bias; with `is_activated` not
// 0, silu of that.
extern "C" __global__ void norm_groups(const float* x, const float* statistics, const float* weight, const float* bias, unsigned pixels,
                                       unsigned channels, unsigned groups, unsigned is_activated, float* out) {
    size_t count = static_cast<size_t>(pixels) * channels, step = static_cast<size_t>(gridDim.x) * blockDim.x;
    unsigned of_group = channels / groups;
    for (size_t i = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step) {
        unsigned channel = static_cast<unsigned>(i % channels), group = channel / of_group;
        float value = fmaf((x[i] - statistics[2 * group]) * statistics[2 * group + 1], weight[channel], bias[channel]);
        float exponent = -value > 80.0f ? 80.0f : -value;
        out[i] = is_activated != 0 ? value * reciprocal(1.0f + exponential(exponent)) : value;
    }
}
