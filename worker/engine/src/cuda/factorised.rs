//! cuSOLVER's factorisations, by type. One of six files that call foreign code.
#![allow(unsafe_code)]

use cudarc::cusolver::sys as solver;

use super::CudaError;
use super::driver::Element;
use super::factoriser::{Routine, solved};

/// The floating-point types that cuSOLVER factorises in.
pub(super) trait Factorised: Element + Into<f64> {
    /// Values of the workspace for a factorisation and an inverse.
    fn workspace(handle: solver::cusolverDnHandle_t, n: i32, square: *mut Self) -> Result<i32, CudaError>;

    /// Runs a routine.
    fn call(
        routine: Routine,
        handle: solver::cusolverDnHandle_t,
        n: i32,
        square: *mut Self,
        work: (*mut Self, i32),
        info: *mut i32,
    ) -> Result<(), CudaError>;
}

/// The upper triangle in row-major order is the lower one in cuSOLVER's, which is column-major.
const UPPER: solver::cublasFillMode_t = solver::cublasFillMode_t::CUBLAS_FILL_MODE_LOWER;

macro_rules! factorised {
    ($type:ty, $potrf_size:ident, $potri_size:ident, $potrf:ident, $potri:ident) => {
        impl Factorised for $type {
            fn workspace(
                handle: solver::cusolverDnHandle_t,
                n: i32,
                square: *mut Self,
            ) -> Result<i32, CudaError> {
                let (mut first, mut second) = (0, 0);
                // SAFETY: the square has n rows of n values, and the pointers are those of numbers that outlive the calls.
                unsafe {
                    solved(
                        stringify!($potrf_size),
                        solver::$potrf_size(handle, UPPER, n, square, n, &raw mut first),
                    )?;
                    solved(
                        stringify!($potri_size),
                        solver::$potri_size(handle, UPPER, n, square, n, &raw mut second),
                    )?;
                }
                Ok(first.max(second).max(1))
            }

            fn call(
                routine: Routine,
                handle: solver::cusolverDnHandle_t,
                n: i32,
                square: *mut Self,
                (work, length): (*mut Self, i32),
                info: *mut i32,
            ) -> Result<(), CudaError> {
                // SAFETY: the square has n rows of n values, the workspace the size that the library asked for, and all is on the GPU.
                unsafe {
                    match routine {
                        Routine::Factorise => solved(
                            stringify!($potrf),
                            solver::$potrf(handle, UPPER, n, square, n, work, length, info),
                        ),
                        Routine::Invert => solved(
                            stringify!($potri),
                            solver::$potri(handle, UPPER, n, square, n, work, length, info),
                        ),
                    }
                }
            }
        }
    };
}
factorised!(
    f32,
    cusolverDnSpotrf_bufferSize,
    cusolverDnSpotri_bufferSize,
    cusolverDnSpotrf,
    cusolverDnSpotri
);
factorised!(
    f64,
    cusolverDnDpotrf_bufferSize,
    cusolverDnDpotri_bufferSize,
    cusolverDnDpotrf,
    cusolverDnDpotri
);
