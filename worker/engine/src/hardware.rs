//! The kind of this machine: what the bits of a result depend on besides the job.
//!
//! Three libraries choose their code at run time. pulp (our loops, faer's) takes the widest instruction set of those that it knows. gemm
//! (products), faer's and nano-gemm's kernels ask for `avx512f`, `fma` and `avx2` by themselves. And gemm sums a product in blocks of a
//! depth that depends on the first-level cache. Machines that agree in all of these give equal bits.

use gemm_common::cache::CACHE_INFO;
use pulp::{Arch, Simd, WithSimd};

/// gemm takes a smaller cache for one of this size.
const LEAST_CACHE: usize = 32 << 10;

/// The kind of this machine, such as `x86-64-v4, 32 KiB of 8-way L1`.
pub fn hardware() -> String {
    let cache = CACHE_INFO[0];
    let (kibibytes, ways) = (cache.cache_bytes.max(LEAST_CACHE) >> 10, cache.associativity.max(2));
    format!("{}, {kibibytes} KiB of {ways}-way L1", instructions(Arch::new().dispatch(Chosen)))
}

/// The name of the instruction set that pulp chose.
struct Chosen;

impl WithSimd for Chosen {
    type Output = &'static str;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> &'static str {
        let path = std::any::type_name::<S>();
        path.rsplit("::").next().unwrap_or(path)
    }
}

/// What pulp chose, by the usual name, and what the others find besides.
#[cfg(target_arch = "x86_64")]
fn instructions(chosen: &str) -> String {
    let found = [
        ("fma", std::is_x86_feature_detected!("fma")),
        ("avx2", std::is_x86_feature_detected!("avx2")),
        ("avx512f", std::is_x86_feature_detected!("avx512f")),
    ];
    // A level implies the first of them.
    let (level, implied) = match chosen {
        "V4" => ("x86-64-v4".to_owned(), 3),
        "V3" => ("x86-64-v3".to_owned(), 2),
        "Scalar" => ("x86-64".to_owned(), 0),
        other => (format!("x86-64 {other}"), 0),
    };
    let besides = found.iter().skip(implied).filter(|(_, found)| *found);
    besides.fold(level, |words, (name, _)| format!("{words}+{name}"))
}

/// What pulp chose, and what gemm and nano-gemm find besides.
#[cfg(target_arch = "aarch64")]
fn instructions(chosen: &str) -> String {
    let found = [
        ("neon", std::arch::is_aarch64_feature_detected!("neon")),
        ("fp16", std::arch::is_aarch64_feature_detected!("fp16")),
        ("fcma", std::arch::is_aarch64_feature_detected!("fcma")),
    ];
    let besides = found.iter().filter(|(_, found)| *found);
    besides.fold(format!("aarch64 {chosen}"), |words, (name, _)| format!("{words}+{name}"))
}

/// What pulp chose.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn instructions(chosen: &str) -> String {
    format!("{} {chosen}", std::env::consts::ARCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_is_of_one_kind() {
        let kind = hardware();
        assert_eq!(kind, hardware());
        assert!(kind.contains(std::env::consts::ARCH.replace('_', "-").as_str()), "{kind}");
        assert!(kind.ends_with("-way L1"), "{kind}");
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn what_a_level_implies_is_not_said_again() {
        let whole = |chosen: &str| instructions(chosen);
        assert_eq!(whole("V4"), "x86-64-v4");
        let v3 = whole("V3");
        assert_eq!(v3 == "x86-64-v3+avx512f", std::is_x86_feature_detected!("avx512f"), "{v3}");
        assert_eq!(whole("Scalar").contains("+fma"), std::is_x86_feature_detected!("fma"));
    }
}
