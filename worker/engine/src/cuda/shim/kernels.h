// Every kernel, compiled for the processor.
#pragma once
#include "shim.h"

#include "../kernels/admm.cu"
#include "../kernels/attention.cu"
#include "../kernels/gram.cu"
#include "../kernels/largest.cu"
#include "../kernels/n_to_m.cu"
#include "../kernels/norm.cu"
#include "../kernels/obs.cu"
#include "../kernels/packed.cu"
#include "../kernels/picture.cu"
#include "../kernels/refine.cu"
#include "../kernels/square.cu"
#include "../kernels/text.cu"

#define FOR_EACH_KERNEL(DO)                                                                                                            \
    DO(column_squares_f32) DO(column_squares_bf16) DO(column_squares_f16) DO(add_column_squares)                                       \
    DO(pad_rows_f32) DO(pad_rows_bf16) DO(pad_rows_f16)                                                                                \
    DO(admit_observation_exact) DO(admit_observation_f32) DO(add_tile_exact) DO(add_tile_f32) DO(largest_of_diagonal)                  \
    DO(begin_selection) DO(count_keys) DO(choose_digit) DO(count_ties) DO(end_selection) DO(zero_lowest) DO(first_not_finite)          \
    DO(mask_n_to_m) DO(zero_unmasked)                                                                                                  \
    DO(scale_weight) DO(split_lowest) DO(split_masked) DO(finish_lowest) DO(finish_masked)                                             \
    DO(offset_rows) DO(first_direction) DO(advance_rows) DO(finish_rows)                                                               \
    DO(prune_block_lowest) DO(prune_block_n_to_m)                                                                                      \
    DO(set_diagonal_f32) DO(set_diagonal_f64) DO(mirror_upper_f32) DO(mirror_upper_f64) DO(widen_square) DO(narrow_upper)                   \
    DO(copy_columns) DO(damp_upper)                                                                                                    \
    DO(diagonal_exact) DO(diagonal_f32) DO(last_column_exact) DO(last_column_f32) DO(unpack_exact) DO(unpack_f32) DO(scale_square)      \
    DO(unpack_moments_exact) DO(unpack_moments_f32)                                                                                    \
    DO(norm_modulate_f32) DO(norm_modulate_bf16) DO(norm_modulate_f16) DO(head_norm_f32) DO(head_norm_bf16) DO(head_norm_f16)          \
    DO(rotate_f32) DO(rotate_bf16) DO(rotate_f16) DO(gelu_f32) DO(gelu_bf16) DO(gelu_f16)                                              \
    DO(add_gated_f32) DO(add_gated_bf16) DO(add_gated_f16) DO(add_bias_f32) DO(add_bias_bf16) DO(add_bias_f16)                         \
    DO(limit_f32) DO(limit_bf16) DO(limit_f16) DO(join_columns_f32) DO(join_columns_bf16) DO(join_columns_f16)                         \
    DO(silu_f32) DO(silu_bf16) DO(silu_f16) DO(add_rows_f32) DO(add_rows_bf16) DO(add_rows_f16)                                        \
    DO(attend_64_bf16) DO(attend_64_f16) DO(attend_128_bf16) DO(attend_128_f16)                                                       \
    DO(softmax_f32) DO(softmax_bf16) DO(softmax_f16)                                                                                   \
    DO(layer_norm_f32) DO(layer_norm_bf16) DO(layer_norm_f16)                                                                          \
    DO(rms_norm_f32) DO(rms_norm_bf16) DO(rms_norm_f16)                                                                                \
    DO(finish_product_f32) DO(finish_product_bf16) DO(finish_product_f16)                                                              \
    DO(biased_softmax_f32) DO(biased_softmax_bf16) DO(biased_softmax_f16)                                                              \
    DO(widen_f32) DO(widen_bf16) DO(widen_f16)                                                                                         \
    DO(round_to_bf16_f32) DO(round_to_bf16_bf16) DO(round_to_bf16_f16)                                                                 \
    DO(gather_patches) DO(channel_sums) DO(group_statistics) DO(norm_groups)
