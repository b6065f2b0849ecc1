// Softmax attention whose scores are never in memory, for heads of 64 or 128 features in bf16 or f16: see Dao, "FlashAttention-2" (2023).
//
// A block of threads takes 128 queries of one head, and each of its warps 16 of them. Keys and values pass in tiles of 64, which the block
// holds in shared memory, while those of the next tile are on their way in registers. Of each query a warp keeps the largest score so far,
// the sum of the shares by it, and what they make of the values; where a tile brings a larger score, both are scaled down.
//
// Products are those of the tensor cores, 16 x 16 by 16 x 8, whose numbers lie two to a word. Lane 4 g + t has, of the left factor, rows g
// and g + 8 at columns 2 t and 2 t + 8; of the right one column g at rows 2 t and 2 t + 8; of their product rows g and g + 8 at columns
// 2 t and 2 t + 1. So the shares of 16 keys are a left factor as they come out of the product that makes their scores.
#include "kernels.cuh"

#define QUERIES_OF_WARP 16u
#define QUERIES_OF_BLOCK 128u
#define KEYS_OF_TILE 64u
#define ATTENTION_THREADS 256u

// Blocks for which a multiprocessor has registers: with two, one computes shares while the other waits for its products.
#define ATTENTION_BLOCKS(HEAD) (HEAD == 64 ? 2 : 1)

// Four words that are read and written at once.
struct alignas(16) Words4 {
    unsigned word[4];
};

// Two words that are read at once.
struct alignas(8) Words2 {
    unsigned word[2];
};

#ifdef __CUDACC__

#define ADD_PRODUCT(TYPE)                                                                                                     \
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." TYPE "." TYPE ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, " \
                 "{%0, %1, %2, %3};"                                                                                          \
                 : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])                                                 \
                 : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "r"(right[0]), "r"(right[1]))

// Adds the product of a left and a right factor.
template <class T>
__device__ void add_product(float (&sums)[4], const unsigned (&left)[4], const unsigned (&right)[2]);

template <>
__device__ inline void add_product<bf16>(float (&sums)[4], const unsigned (&left)[4], const unsigned (&right)[2]) {
    ADD_PRODUCT("bf16");
}

template <>
__device__ inline void add_product<f16>(float (&sums)[4], const unsigned (&left)[4], const unsigned (&right)[2]) {
    ADD_PRODUCT("f16");
}

// Two numbers in one word, the first in its lower half. Both are rounded to the nearest, ties to even.
template <class T>
__device__ unsigned word_of(float first, float second);

template <>
__device__ inline unsigned word_of<bf16>(float first, float second) {
    unsigned word;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(second), "f"(first));
    return word;
}

template <>
__device__ inline unsigned word_of<f16>(float first, float second) {
    unsigned word;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(second), "f"(first));
    return word;
}

// 2^x, to 2 units in the last place; 0 of minus infinity.
__device__ inline float power_of_2(float x) {
    float power;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
    return power;
}

#else

template <class T>
void add_product(float (&sums)[4], const unsigned (&left)[4], const unsigned (&right)[2]) {
    shim::add_product(sums, left, right, [](unsigned short bits) { return to_f32(T{bits}); }, __LINE__);
}

template <class T>
unsigned word_of(float first, float second) {
    T halves[2];
    from_f32(first, &halves[0]);
    from_f32(second, &halves[1]);
    return halves[0].bits | static_cast<unsigned>(halves[1].bits) << 16;
}

inline float power_of_2(float x) { return exp2f(x); }

#endif

// The largest, or the sum, of a row's numbers in the four lanes that have them.
__device__ inline float largest_of_row(float x) {
    x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, 1));
    return fmaxf(x, __shfl_xor_sync(ALL_LANES, x, 2));
}

__device__ inline float sum_of_row(float x) {
    x += __shfl_xor_sync(ALL_LANES, x, 1);
    return x + __shfl_xor_sync(ALL_LANES, x, 2);
}

// One thread's part of a tile of keys and values on its way into shared memory. There a key's features lie two to a word, in rows that begin
// four banks apart; the values of two neighbouring keys share a word, one word for each feature, in rows that begin eight banks apart. So no
// two lanes of a warp read different words of one bank.
template <unsigned HEAD>
struct Passing {
    static constexpr unsigned KEY_STRIDE = HEAD / 2 + 4, VALUE_STRIDE = HEAD + 8;
    static constexpr unsigned PARTS = KEYS_OF_TILE * HEAD / 8 / ATTENTION_THREADS;
    Words4 keys[PARTS], values[PARTS];

    // Reads them; those past the last key are 0.
    __device__ void read(const unsigned* from_keys, const unsigned* from_values, unsigned first, unsigned count, unsigned width) {
        const Words4 no_words = {{0, 0, 0, 0}};
        size_t stride = width / 2;
#pragma unroll
        for (unsigned i = 0; i < PARTS; i++) {
            unsigned part = i * ATTENTION_THREADS + threadIdx.x;
            unsigned key = first + part / (HEAD / 8), at = part % (HEAD / 8);
            keys[i] = key < count ? *reinterpret_cast<const Words4*>(from_keys + key * stride + 4 * at) : no_words;
            unsigned even = first + 2 * (part / (HEAD / 4)), feature = 2 * (part % (HEAD / 4));
            Words2 pair[2] = {{{0, 0}}, {{0, 0}}};
#pragma unroll
            for (unsigned odd = 0; odd < 2; odd++)
                if (even + odd < count) pair[odd] = *reinterpret_cast<const Words2*>(from_values + (even + odd) * stride + feature);
#pragma unroll
            for (unsigned j = 0; j < 2; j++) {
                values[i].word[2 * j] = (pair[0].word[j] & 0xffffu) | pair[1].word[j] << 16;
                values[i].word[2 * j + 1] = pair[0].word[j] >> 16 | (pair[1].word[j] & 0xffff0000u);
            }
        }
    }

    // Writes them where all threads of the block find them.
    __device__ void write(unsigned* to_keys, unsigned* to_values) const {
#pragma unroll
        for (unsigned i = 0; i < PARTS; i++) {
            unsigned part = i * ATTENTION_THREADS + threadIdx.x;
            *reinterpret_cast<Words4*>(to_keys + part / (HEAD / 8) * KEY_STRIDE + 4 * (part % (HEAD / 8))) = keys[i];
            *reinterpret_cast<Words4*>(to_values + part / (HEAD / 4) * VALUE_STRIDE + 4 * (part % (HEAD / 4))) = values[i];
        }
    }
};

// Of `rows` queries and `count` keys and values, whose heads lie side by side in rows of `width` numbers. Scores are multiplied by `scale`,
// which is above 0, and their shares are powers of 2.
template <class T, unsigned HEAD>
__device__ void attend(const T* queries, const T* keys, const T* values, unsigned rows, unsigned count, unsigned width, float scale, T* out) {
    constexpr unsigned TILES = KEYS_OF_TILE / 8, STEPS = HEAD / 16, FEATURE_TILES = HEAD / 8;
    constexpr unsigned KEY_STRIDE = Passing<HEAD>::KEY_STRIDE, VALUE_STRIDE = Passing<HEAD>::VALUE_STRIDE;
    DYNAMIC_SHARED(unsigned, tile_keys);
    unsigned* tile_values = tile_keys + KEYS_OF_TILE * KEY_STRIDE;
    const unsigned warp = threadIdx.x / 32, group = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    const size_t stride = width / 2, head = static_cast<size_t>(blockIdx.y) * (HEAD / 2);
    const unsigned* all_keys = reinterpret_cast<const unsigned*>(keys) + head;
    const unsigned* all_values = reinterpret_cast<const unsigned*>(values) + head;
    const unsigned* all_queries = reinterpret_cast<const unsigned*>(queries) + head;
    const unsigned first_row = blockIdx.x * QUERIES_OF_BLOCK + warp * QUERIES_OF_WARP + group;

    unsigned query[STEPS][4];
#pragma unroll
    for (unsigned k = 0; k < STEPS; k++)
#pragma unroll
        for (unsigned i = 0; i < 4; i++) {
            unsigned row = first_row + 8 * (i % 2);
            query[k][i] = row < rows ? all_queries[row * stride + 8 * k + 4 * (i / 2) + t] : 0;
        }
    float attended[FEATURE_TILES][4] = {}, sums[2] = {0.0f, 0.0f}, largest[2] = {-INFINITY, -INFINITY};

    Passing<HEAD> passing;
    passing.read(all_keys, all_values, 0, count, width);
    for (unsigned first = 0; first < count; first += KEYS_OF_TILE) {
        // Nobody reads the tile before any more.
        __syncthreads();
        passing.write(tile_keys, tile_values);
        __syncthreads();
        if (count - first > KEYS_OF_TILE) passing.read(all_keys, all_values, first + KEYS_OF_TILE, count, width);

        float scores[TILES][4] = {};
#pragma unroll
        for (unsigned k = 0; k < STEPS; k++)
#pragma unroll
            for (unsigned n = 0; n < TILES; n++) {
                const unsigned* at = tile_keys + (8 * n + group) * KEY_STRIDE + 8 * k + t;
                const unsigned right[2] = {at[0], at[4]};
                add_product<T>(scores[n], query[k], right);
            }

        // Only the last tile has places without a key.
        if (count - first < KEYS_OF_TILE) {
#pragma unroll
            for (unsigned n = 0; n < TILES; n++)
#pragma unroll
                for (unsigned i = 0; i < 4; i++)
                    if (first + 8 * n + 2 * t + i % 2 >= count) scores[n][i] = -INFINITY;
        }
        float most[2] = {largest[0], largest[1]};
#pragma unroll
        for (unsigned n = 0; n < TILES; n++)
#pragma unroll
            for (unsigned i = 0; i < 4; i++) most[i / 2] = fmaxf(most[i / 2], scores[n][i]);
        float shrinks[2], offsets[2];
#pragma unroll
        for (unsigned r = 0; r < 2; r++) {
            most[r] = largest_of_row(most[r]);
            shrinks[r] = power_of_2((largest[r] - most[r]) * scale);
            largest[r] = most[r];
            offsets[r] = -most[r] * scale;
            sums[r] *= shrinks[r];
        }
#pragma unroll
        for (unsigned n = 0; n < TILES; n++)
#pragma unroll
            for (unsigned i = 0; i < 4; i++) {
                scores[n][i] = power_of_2(fmaf(scores[n][i], scale, offsets[i / 2]));
                sums[i / 2] += scores[n][i];
            }
#pragma unroll
        for (unsigned n = 0; n < FEATURE_TILES; n++)
#pragma unroll
            for (unsigned i = 0; i < 4; i++) attended[n][i] *= shrinks[i / 2];

#pragma unroll
        for (unsigned k = 0; k < KEYS_OF_TILE / 16; k++) {
            const float(&low)[4] = scores[2 * k], (&high)[4] = scores[2 * k + 1];
            const unsigned shares[4] = {word_of<T>(low[0], low[1]), word_of<T>(low[2], low[3]), word_of<T>(high[0], high[1]),
                                        word_of<T>(high[2], high[3])};
#pragma unroll
            for (unsigned n = 0; n < FEATURE_TILES; n++) {
                const unsigned* at = tile_values + (8 * k + t) * VALUE_STRIDE + 8 * n + group;
                const unsigned right[2] = {at[0], at[4 * VALUE_STRIDE]};
                add_product<T>(attended[n], shares, right);
            }
        }
    }

    unsigned* all_out = reinterpret_cast<unsigned*>(out) + head;
#pragma unroll
    for (unsigned r = 0; r < 2; r++) {
        float factor = 1.0f / sum_of_row(sums[r]);
        unsigned row = first_row + 8 * r;
        if (row >= rows) continue;
#pragma unroll
        for (unsigned n = 0; n < FEATURE_TILES; n++)
            all_out[row * stride + 4 * n + t] = word_of<T>(attended[n][2 * r] * factor, attended[n][2 * r + 1] * factor);
    }
}

#define ATTEND(HEAD, TYPE)                                                                                                             \
    extern "C" __global__ void __launch_bounds__(ATTENTION_THREADS, ATTENTION_BLOCKS(HEAD))                                            \
        attend_##HEAD##_##TYPE(const TYPE* queries, const TYPE* keys, const TYPE* values, unsigned rows, unsigned count, unsigned width, \
                               float scale, TYPE* out) {                                                                               \
        attend<TYPE, HEAD>(queries, keys, values, rows, count, width, scale, out);                                                     \
    }
ATTEND(64, bf16)
ATTEND(64, f16)
ATTEND(128, bf16)
ATTEND(128, f16)
