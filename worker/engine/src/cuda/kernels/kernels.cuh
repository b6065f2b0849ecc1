// What all kernels share.
//
// Who launches what (threads of a block; grid), for a matrix of `rows x n` in row-major order:
//
// gram.cu    an observation is admitted, then added to a Gram panel by panel
//   column_squares_*      256; (n / 256, tokens / TOKENS_OF_PART)    squares of an observation, or of the pilot's, part by part
//   add_column_squares    256; n / 256                               the parts, in order
//   admit_observation_*   256; n / 256                               refuses what would not be finite or would overflow
//   add_tile_*            1024; a share of the multiprocessors       each panel of products that cublasGemmEx leaves
//   largest_of_diagonal   256; n / 256                               for the exponent
//   pad_rows_*            256; (stride / 256, 256)                   before, where rows get a constant or are not aligned
//
// largest.cu  the lowest values of a matrix, exactly so many; rows and columns are those of the matrix, or of a block of columns
//   begin_selection       256; 8
//   count_keys            256; (columns / 256, 256)                  before each choose_digit: bits 20 to 30, 10 to 19, 0 to 9
//   choose_digit          256; 1
//   count_ties            256; (columns / 256, 256)
//   end_selection         256; 1
//   zero_lowest           256; (columns / 256, 256)                  where nothing else is done by the mask
//   first_not_finite      256; 1024                                  before any of these: a NaN has no rank
//
// n_to_m.cu   N of every M consecutive weights
//   mask_n_to_m           256; (n / 256, 256)
//   zero_unmasked         256; 1024                                  where nothing else is done by the mask
//
// admm.cu     between two products of alternating directions
//   scale_weight          256; (n / 256, 256)                        at the start
//   split_*               256; (n / 256, 256)                        once the mask is known: _lowest by a selection, _masked of N:M
//   finish_*              256; (n / 256, 256)                        in place of the last split_*
//
// refine.cu   between two products of refinement
//   offset_rows           256; rows                                  then the product that gives the first residual
//   first_direction       256; rows                                  then a product before each step
//   advance_rows          256; rows
//   finish_rows           256; rows
//
// obs.cu      one block of columns by OBS, once it is brought up to date by a product
//   prune_block_lowest    128; rows / 4                              once its values times 1 / U_jj are selected
//   prune_block_n_to_m    128; rows / 4
//
// square.cu   squares of a site, before and after a factorisation
//   set_diagonal_*        256; n / 256
//   mirror_upper_*        (32, 8); (n / 32, n / 32)                  of an inverse, in place
//   narrow_upper          (32, 8); (n / 32, n / 32)                  of an inverse in f64
//   widen_square          256; 1024
//   damp_upper            256; (n / 256, 256)                        of a square in f64, before it is factorised
//   copy_columns          256; (columns / 256, 256)
//
// packed.cu   a Gram's packed sums as the square that its site is solved by
//   diagonal_*            256; n / 256                               for what ranks say of their Grams
//   last_column_*         256; n / 256                               the means and the mass, where a feature of constant 1 is the last
//   unpack_*              256; (n / 256, 256)                        before the diagonal is read
//   unpack_moments_*      256; (n / 256, 256)                        for heads and neurons
//   scale_square          256; (n / 256, 256)                        once it is known, and before mirror_upper_f32
//
// norm.cu     what surrounds the products of a transformer's block, in f32, bf16 and f16
//   norm_modulate_*       256; rows / 16
//   head_norm_*           256; rows * heads / 16                     of a product, with its bias
//   rotate_*              (32, 8); (width / 256, turned / 8)         parts of the rows, as those that follow: see rows.cuh
//   gelu_*                (32, 8); (width / 256, rows / 8)           of a product, with its bias
//   add_gated_*           (32, 8); (width / 256, rows / 8)           of a product, with its bias
//   add_bias_*            (32, 8); (width / 256, rows / 8)           of a product
//   limit_*               (32, 8); (width / 256, rows / 8)
//   silu_*                (32, 8); (width / 256, rows / 8)
//   add_rows_*            (32, 8); (width / 256, rows / 8)
//   join_columns_*        (32, 8); (width / 256, rows / 8)
//   softmax_*             256; rows / 16                             between the two products of an attention
//
// attention.cu  an attention with heads of 64 or 128 features, in bf16 and f16, in one kernel
//   attend_*              256; (queries / 128, heads)
//
// text.cu     what surrounds the products of a text encoder's layer; each comes for the type that it writes, the last two for what they read
//   layer_norm_*          256; rows / 16
//   rms_norm_*            256; rows / 16
//   finish_product_*      (32, 8); (width / 256, rows / 8)           of a product, with its bias, and of a gate
//   biased_softmax_*      256; rows / 16                             between the two products of an attention
//   widen_*               (32, 8); (width / 256, rows / 8)           of a weight as it is stored
//   round_to_bf16_*       (32, 8); (width / 256, rows / 8)           of a weight as it is stored
//
// picture.cu  what surrounds the products of a picture's decoder, in f32
//   gather_patches        256; 1024                                  before the product of a convolution
//   channel_sums          256; (channels / 256, pixels / PIXELS_OF_PART)
//   group_statistics      256; groups                                of these sums
//   norm_groups           256; 1024                                  by these statistics
//
// Rules of all kernels:
// - Compiled with --fmad=false: products and sums are rounded one by one, as the processor does. Where it fuses them, kernels call fmaf.
// - No result depends on the order of threads or blocks: sums have a fixed order or are integers.
// - Launches check sizes; a kernel takes any size that its comment allows, also those that do not fill a block.
// - An index that may pass 2^32 is a size_t.
#pragma once

#ifdef __CUDACC__
// The shared memory whose size a launch sets.
#define DYNAMIC_SHARED(type, name)                                  \
    extern __shared__ __align__(16) unsigned char dynamic_shared[]; \
    type* name = reinterpret_cast<type*>(dynamic_shared)
#else
#include "../shim/shim.h"
#endif

#define ALL_LANES 0xffffffffu

// A number that no column, row or place has.
#define NO_PLACE 0xffffffffu

// Where row i of the packed upper triangle of an n x n matrix starts: see `gram/packed.rs`.
__device__ inline size_t start_of_row(size_t n, size_t i) { return i == 0 ? 0 : i * n - i * (i - 1) / 2; }

// bf16 as its bits: the upper half of an f32.
struct bf16 {
    unsigned short bits;
};

__device__ inline float to_f32(float x) { return x; }

__device__ inline float to_f32(bf16 x) { return __uint_as_float(static_cast<unsigned>(x.bits) << 16); }

__device__ inline void from_f32(float x, float* to) { *to = x; }

// Rounds to the nearest, ties to even. A NaN keeps its upper bits and becomes quiet.
__device__ inline void from_f32(float x, bf16* to) {
    unsigned bits = __float_as_uint(x);
    bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
    unsigned upper = is_nan ? (bits >> 16) | 0x40u : (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    to->bits = static_cast<unsigned short>(upper);
}

// f16 as its bits.
struct f16 {
    unsigned short bits;
};

__device__ inline float to_f32(f16 x) {
    unsigned sign = static_cast<unsigned>(x.bits & 0x8000u) << 16, rest = static_cast<unsigned>(x.bits & 0x7fffu) << 13;
    // The exponent of an infinity or a NaN is all ones in both types; other numbers, subnormal ones too, are 2^112 times too small.
    bool is_finite = rest < 0x0f800000u;
    unsigned bits = is_finite ? __float_as_uint(__uint_as_float(rest) * 5192296858534827628530496329220096.0f) : rest | 0x7f800000u;
    return __uint_as_float(sign | bits);
}

// Rounds to the nearest, ties to even. A NaN keeps its upper bits and becomes quiet.
__device__ inline void from_f32(float x, f16* to) {
    unsigned bits = __float_as_uint(x), sign = bits >> 16 & 0x8000u, rest = bits & 0x7fffffffu, rounded;
    if (rest > 0x7f800000u) {
        rounded = 0x7e00u | (rest >> 13 & 0x3ffu);
    } else if (rest >= 0x477ff000u) {
        // From 65520 on.
        rounded = 0x7c00u;
    } else if (rest < 0x38800000u) {
        // Below 2^-14 numbers are multiples of 2^-24, as those from 0.5 to 1 are in f32.
        rounded = __float_as_uint(__uint_as_float(rest) + 0.5f) - 0x3f000000u;
    } else {
        // The exponent's offset is 127 in f32 and 15 here.
        rounded = (rest - 0x38000000u + 0xfffu + (rest >> 13 & 1u)) >> 13;
    }
    to->bits = static_cast<unsigned short>(sign | rounded);
}
