//! The kernels that a GPU runs, with the types of their arguments.

use super::CudaError;
use super::driver::{CudaDriver, In, KernelArgument, Out};
pub(super) use super::launch::Launch;
use super::matrix::NumberType;

/// An argument's type, and what PTX calls it.
trait KernelParameter {
    const PTX: &'static str;

    fn argument(self) -> KernelArgument;
}

impl<T> KernelParameter for In<'_, T> {
    const PTX: &'static str = "u64";

    fn argument(self) -> KernelArgument {
        KernelArgument::U64(self.pointer)
    }
}

impl<T> KernelParameter for Out<'_, T> {
    const PTX: &'static str = "u64";

    fn argument(self) -> KernelArgument {
        KernelArgument::U64(self.pointer)
    }
}

macro_rules! numbers {
    ($($type:ty, $variant:ident, $ptx:literal;)*) => {
        $(impl KernelParameter for $type {
            const PTX: &'static str = $ptx;

            fn argument(self) -> KernelArgument {
                KernelArgument::$variant(self)
            }
        })*
    };
}
numbers! {
    u64, U64, "u64";
    u32, U32, "u32";
    f32, F32, "f32";
    f64, F64, "f64";
}

/// A size or an index, as kernels take it. Larger ones were refused where the matrix came from.
impl KernelParameter for usize {
    const PTX: &'static str = "u32";

    fn argument(self) -> KernelArgument {
        KernelArgument::U32(u32::try_from(self).unwrap_or(u32::MAX))
    }
}

/// What of a module is launched: its PTX, and the names of kernels that take the same arguments, with what PTX calls their types.
type Module = (&'static str, &'static [(&'static [&'static str], &'static [&'static str])]);

/// The methods of [`CudaDriver`] that launch kernels of the same arguments; under `each type` one that gets the type of numbers.
macro_rules! launchers {
    ($file:literal, [$($name:ident),+], $arguments:tt) => {
        $(launchers!($file, $name, $arguments);)+
    };
    ($file:literal, $name:ident, ($($argument:ident: $type:ty),*)) => {
        #[doc = concat!("`", stringify!($name), "` of `kernels/", $file, ".cu`.")]
        pub(super) fn $name(&self, launch: Launch, $($argument: $type),*) -> Result<(), CudaError> {
            self.launch(stringify!($name), launch, &[$(KernelParameter::argument($argument)),*])
        }
    };
    (each type, $file:literal, $name:ident, ($($argument:ident: $type:ty),*)) => {
        #[doc = concat!("`", stringify!($name), "` of `kernels/", $file, ".cu`, for a type of numbers.")]
        pub(super) fn $name(&self, of: NumberType, launch: Launch, $($argument: $type),*) -> Result<(), CudaError> {
            let kernel = match of {
                NumberType::F32 => concat!(stringify!($name), "_f32"),
                NumberType::Bf16 => concat!(stringify!($name), "_bf16"),
                NumberType::F16 => concat!(stringify!($name), "_f16"),
            };
            self.launch(kernel, launch, &[$(KernelParameter::argument($argument)),*])
        }
    };
}

/// Declares kernels by module, each as a method of [`CudaDriver`] that launches it; those that take the same arguments stand before them
/// together. Those under `each type` come for each type of numbers, which their method gets as an argument; matrices of that type are bytes
/// to it.
macro_rules! kernels {
    ($($file:literal {
        $($($name:ident),+ ($($argument:ident: $type:ty),* $(,)?);)*
        $([each type] { $($any:ident($($any_argument:ident: $any_type:ty),* $(,)?);)* })?
    })*) => {
        /// All modules.
        pub(super) const MODULES: &[Module] = &[$((
            include_str!(concat!("ptx/", $file, ".ptx")),
            &[
                $((&[$(stringify!($name)),+], &[$(<$type as KernelParameter>::PTX),*]),)*
                $($((
                    &[
                        concat!(stringify!($any), "_f32"),
                        concat!(stringify!($any), "_bf16"),
                        concat!(stringify!($any), "_f16"),
                    ],
                    &[$(<$any_type as KernelParameter>::PTX),*],
                ),)*)?
            ],
        ),)*];

        #[allow(clippy::too_many_arguments)]
        impl CudaDriver {$(
            $(launchers!($file, [$($name),+], ($($argument: $type),*));)*
            $($(launchers!(each type, $file, $any, ($($any_argument: $any_type),*));)*)?
        )*}
    };
}

kernels! {
    "attention" {
        attend_64_bf16, attend_64_f16, attend_128_bf16, attend_128_f16(
            queries: In<'_, u8>, keys: In<'_, u8>, values: In<'_, u8>, rows: usize, count: usize, width: usize, scale: f32, out: Out<'_, u8>,
        );
    }
    "gram" {
        add_column_squares(parts: In<'_, f64>, count: usize, width: usize, alpha: f64, energy: Out<'_, f64>);
        admit_observation_exact(
            energy: In<'_, f64>, sums: In<'_, i64>, n: usize, alpha: f64, unit: f64, verdict: Out<'_, u32>,
        );
        admit_observation_f32(energy: In<'_, f64>, sums: In<'_, f32>, n: usize, alpha: f64, verdict: Out<'_, u32>);
        add_tile_exact(
            tile: In<'_, f32>, rows: usize, columns: usize, stride: usize, row0: usize, column0: usize, n: usize, scale: f64,
            verdict: In<'_, u32>, sums: Out<'_, i64>, spoilt: Out<'_, u32>,
        );
        add_tile_f32(
            tile: In<'_, f32>, rows: usize, columns: usize, stride: usize, row0: usize, column0: usize, n: usize, alpha: f32,
            verdict: In<'_, u32>, sums: Out<'_, f32>,
        );
        [each type] {
            column_squares(rows: In<'_, u8>, tokens: usize, width: usize, parts: Out<'_, f64>);
            pad_rows(from: In<'_, u8>, rows: usize, width: usize, ones: usize, stride: usize, to: Out<'_, u8>);
        }
    }
    "largest" {
        begin_selection(
            selection: Out<'_, u32>, rank: usize, histogram: Out<'_, u32>, ties: Out<'_, u32>, columns: usize,
        );
        count_keys(
            matrix: In<'_, f32>, rows: usize, columns: usize, stride: usize, factors: In<'_, f32>, selection: In<'_, u32>,
            shift: u32, bits: u32, histogram: Out<'_, u32>,
        );
        choose_digit(selection: Out<'_, u32>, shift: u32, bits: u32, histogram: Out<'_, u32>);
        count_ties(
            matrix: In<'_, f32>, rows: usize, columns: usize, stride: usize, factors: In<'_, f32>, selection: In<'_, u32>,
            ties: Out<'_, u32>,
        );
        end_selection(
            matrix: In<'_, f32>, rows: usize, columns: usize, stride: usize, factors: In<'_, f32>, selection: Out<'_, u32>,
            ties: In<'_, u32>,
        );
    }
    "n_to_m" {
        mask_n_to_m(matrix: In<'_, f32>, rows: usize, n: usize, pruned: usize, m: usize, mask: Out<'_, u8>);
    }
    "admm" {
        scale_weight(
            weight: Out<'_, f32>, rows: usize, n: usize, scale: In<'_, f32>, dead: In<'_, u8>, dense: Out<'_, f32>,
        );
        split_lowest(
            weight: Out<'_, f32>, change: Out<'_, f32>, dense: In<'_, f32>, scale: In<'_, f32>, rows: usize, n: usize,
            times: f32, selection: In<'_, u32>,
        );
        finish_lowest(weight: Out<'_, f32>, scale: In<'_, f32>, rows: usize, n: usize, selection: In<'_, u32>);
        split_masked(
            weight: Out<'_, f32>, change: Out<'_, f32>, dense: In<'_, f32>, scale: In<'_, f32>, rows: usize, n: usize,
            times: f32, mask: In<'_, u8>,
        );
        finish_masked(weight: Out<'_, f32>, scale: In<'_, f32>, rows: usize, n: usize, mask: In<'_, u8>);
    }
    "refine" {
        offset_rows(
            v: Out<'_, f32>, d: Out<'_, f32>, weight: In<'_, f32>, dense: In<'_, f32>, scale: In<'_, f32>, n: usize,
        );
        first_direction(
            direction: Out<'_, f32>, residual: In<'_, f32>, v: In<'_, f32>, damping: In<'_, f32>, n: usize,
            errors: Out<'_, f64>, squares: Out<'_, f64>,
        );
        advance_rows(
            v: Out<'_, f32>, residual: Out<'_, f32>, direction: Out<'_, f32>, product: In<'_, f32>, n: usize,
            squares: Out<'_, f64>, more: u32,
        );
        finish_rows(
            weight: Out<'_, f32>, dense: In<'_, f32>, v: In<'_, f32>, residual: In<'_, f32>, scale: In<'_, f32>,
            damping: In<'_, f32>, n: usize, errors: Out<'_, f64>,
        );
    }
    "obs" {
        prune_block_lowest(
            settled: In<'_, f32>, u: In<'_, f32>, reciprocal: In<'_, f32>, rows: usize, columns: usize, n: usize,
            selection: In<'_, u32>, weight: Out<'_, f32>, errors: Out<'_, f32>,
        );
        prune_block_n_to_m(
            settled: In<'_, f32>, u: In<'_, f32>, reciprocal: In<'_, f32>, rows: usize, columns: usize, n: usize, pruned: usize,
            m: usize, weight: Out<'_, f32>, errors: Out<'_, f32>,
        );
    }
    "packed" {
        diagonal_exact(sums: In<'_, i64>, n: usize, out: Out<'_, i64>);
        diagonal_f32(sums: In<'_, f32>, n: usize, out: Out<'_, f32>);
        last_column_exact(sums: In<'_, i64>, n: usize, out: Out<'_, i64>);
        last_column_f32(sums: In<'_, f32>, n: usize, out: Out<'_, f32>);
        unpack_moments_exact(
            sums: In<'_, i64>, n: usize, unit: f64, scale: f64, means: In<'_, f64>, constant: In<'_, u8>, square: Out<'_, f64>,
        );
        unpack_moments_f32(
            sums: In<'_, f32>, n: usize, unit: f64, scale: f64, means: In<'_, f64>, constant: In<'_, u8>, square: Out<'_, f64>,
        );
        unpack_exact(sums: In<'_, i64>, n: usize, scale: f64, square: Out<'_, f32>, spoilt: Out<'_, u32>);
        unpack_f32(sums: In<'_, f32>, n: usize, scale: f64, square: Out<'_, f32>, spoilt: Out<'_, u32>);
        scale_square(square: Out<'_, f32>, reciprocal: In<'_, f32>, n: usize);
    }
    "norm" {
        [each type] {
            norm_modulate(
                x: In<'_, u8>, values: In<'_, u8>, rows: usize, width: usize, tokens: usize, stride: usize, scale: usize, shift: usize,
                out: Out<'_, u8>,
            );
            head_norm(x: Out<'_, u8>, bias: In<'_, u8>, weight: In<'_, u8>, rows: usize, heads: usize, head: usize);
            rotate(
                x: Out<'_, u8>, cosines: In<'_, u8>, sines: In<'_, u8>, items: usize, tokens: usize, turned: usize, width: usize,
                pairs: usize,
            );
            gelu(x: Out<'_, u8>, bias: In<'_, u8>, rows: usize, width: usize);
            add_gated(
                residual: Out<'_, u8>, product: In<'_, u8>, bias: In<'_, u8>, values: In<'_, u8>, rows: usize, width: usize,
                tokens: usize, stride: usize, gate: usize,
            );
            add_bias(x: Out<'_, u8>, bias: In<'_, u8>, rows: usize, width: usize);
            limit(x: Out<'_, u8>, rows: usize, width: usize, largest: f32);
            silu(x: Out<'_, u8>, rows: usize, width: usize);
            add_rows(x: Out<'_, u8>, added: In<'_, u8>, times: usize, rows: usize, width: usize);
            join_columns(left: In<'_, u8>, right: In<'_, u8>, rows: usize, a: usize, b: usize, out: Out<'_, u8>);
            softmax(scores: In<'_, u8>, rows: usize, keys: usize, stride: usize, scale: f32, out: Out<'_, u8>);
        }
    }
    "text" {
        [each type] {
            layer_norm(
                x: In<'_, u8>, weight: In<'_, u8>, bias: In<'_, u8>, rows: usize, width: usize, epsilon: f32, out: Out<'_, u8>,
            );
            rms_norm(x: In<'_, u8>, weight: In<'_, u8>, rows: usize, width: usize, epsilon: f32, out: Out<'_, u8>);
            finish_product(
                product: In<'_, u8>, bias: In<'_, u8>, gate: In<'_, u8>, rows: usize, width: usize, function: u32, out: Out<'_, u8>,
            );
            biased_softmax(
                scores: In<'_, u8>, bias: In<'_, u8>, rows: usize, biases: usize, keys: usize, stride: usize, scale: f32,
                out: Out<'_, u8>,
            );
            widen(from: In<'_, u8>, rows: usize, width: usize, to: Out<'_, u8>);
            round_to_bf16(from: In<'_, u8>, rows: usize, width: usize, to: Out<'_, u8>);
        }
    }
    "picture" {
        gather_patches(
            x: In<'_, u8>, height: usize, width: usize, channels: usize, scale: usize, first: usize, count: usize, out: Out<'_, u8>,
        );
        channel_sums(x: In<'_, u8>, pixels: usize, channels: usize, sums: Out<'_, f64>);
        group_statistics(
            sums: In<'_, f64>, parts: usize, channels: usize, pixels: usize, epsilon: f32, statistics: Out<'_, u8>,
        );
        norm_groups(
            x: In<'_, u8>, statistics: In<'_, u8>, weight: In<'_, u8>, bias: In<'_, u8>, pixels: usize, channels: usize, groups: usize,
            is_activated: u32, out: Out<'_, u8>,
        );
    }
    "square" {
        set_diagonal_f32(square: Out<'_, f32>, n: usize, value: f32);
        set_diagonal_f64(square: Out<'_, f64>, n: usize, value: f64);
        damp_upper(square: Out<'_, f64>, n: usize, added: f64, spoilt: Out<'_, u32>);
        mirror_upper_f32(square: Out<'_, f32>, n: usize);
        mirror_upper_f64(square: Out<'_, f64>, n: usize);
        narrow_upper(upper: In<'_, f64>, out: Out<'_, f32>, n: usize);
        widen_square(from: In<'_, f32>, to: Out<'_, f64>, count: u64);
        copy_columns(from: In<'_, f32>, to: Out<'_, f32>, rows: usize, columns: usize, stride: usize);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the PTX calls the types of a kernel's arguments.
    fn declared<'a>(ptx: &'a str, kernel: &str) -> Vec<&'a str> {
        let (_, rest) = ptx.split_once(&format!(".entry {kernel}(")).unwrap();
        let (arguments, _) = rest.split_once(')').unwrap();
        let types = arguments.split_whitespace().filter_map(|word| word.strip_prefix('.'));
        types.filter(|word| *word != "param" && *word != "ptr" && *word != "align").collect()
    }

    #[test]
    fn every_kernel_takes_the_arguments_that_its_ptx_declares() {
        for (ptx, kernels) in MODULES {
            for (names, types) in *kernels {
                for kernel in *names {
                    assert_eq!(declared(ptx, kernel), *types, "{kernel}");
                }
            }
        }
    }

    #[test]
    fn sums_and_products_of_the_ptx_are_rounded_one_by_one() {
        // Without a rounding mode the driver's compiler would fuse them.
        for (ptx, _) in MODULES {
            for word in ptx.split_whitespace() {
                assert!(!["mul.f32", "add.f32", "sub.f32", "mul.f64", "add.f64", "sub.f64"].contains(&word));
            }
        }
    }
}
