//! cuBLAS and cuSOLVER. One of two files that call foreign code.
#![allow(unsafe_code)]

use std::ptr::{from_ref, null_mut};
use std::sync::{Mutex, PoisonError};

use cudarc::cublas::sys as blas;
use cudarc::cusolver::sys as solver;
use half::bf16;

use super::CudaError;
use super::driver::{Buffer, Driver, Element, In, Out};

/// Bytes of cuBLAS's workspace: what it advises for Hopper. Of a fixed size, because the choice of algorithms depends on it.
const WORKSPACE: usize = 32 << 20;

/// What cuBLAS multiplies with sums in f32.
pub(super) trait Factor: Element {
    const TYPE: blas::cudaDataType;
}

impl Factor for f32 {
    const TYPE: blas::cudaDataType = blas::cudaDataType::CUDA_R_32F;
}

impl Factor for bf16 {
    const TYPE: blas::cudaDataType = blas::cudaDataType::CUDA_R_16BF;
}

/// A matrix in row-major order, or its transpose.
#[derive(Clone, Copy, Debug)]
pub(super) struct Operand<'a, T> {
    pub(super) values: In<'a, T>,
    /// Values between the starts of two rows.
    pub(super) stride: usize,
    pub(super) transposed: bool,
}

/// The sizes of a product: out (rows x columns, its rows `stride` apart) = left (rows x inner) * right (inner x columns).
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) inner: usize,
    pub(super) stride: usize,
}

/// Handles of the libraries, on one stream.
#[derive(Debug)]
pub(super) struct Libraries {
    handles: Mutex<Handles>,
    /// Of cuBLAS, as it says it: 130000 for 13.0.
    version: i32,
    /// Of cuBLAS, which uses it as long as its handle lives.
    _workspace: Buffer<u8>,
}

#[derive(Debug)]
struct Handles {
    blas: blas::cublasHandle_t,
    solver: solver::cusolverDnHandle_t,
}

// SAFETY: both libraries allow a handle to move between threads; a mutex lets one thread at a time use it.
unsafe impl Send for Handles {}

impl Drop for Handles {
    fn drop(&mut self) {
        // SAFETY: the handles are those that the libraries made, or null where they made none. Nothing can be done about a failure: the
        // process is about to end or the GPU is lost.
        unsafe {
            if !self.blas.is_null() {
                let _ = blas::cublasDestroy_v2(self.blas);
            }
            if !self.solver.is_null() {
                let _ = solver::cusolverDnDestroy(self.solver);
            }
        }
    }
}

/// The floating-point types that cuSOLVER factorises in.
pub(super) trait Factorised: Element {
    /// Values of the workspace for a factorisation and an inverse.
    fn workspace(handle: solver::cusolverDnHandle_t, n: i32, square: *mut Self) -> Result<i32, CudaError>;

    /// Factorises, or inverts by the factor.
    fn call(
        inverts: bool,
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
                inverts: bool,
                handle: solver::cusolverDnHandle_t,
                n: i32,
                square: *mut Self,
                (work, length): (*mut Self, i32),
                info: *mut i32,
            ) -> Result<(), CudaError> {
                // SAFETY: the square has n rows of n values, the workspace the size that the library asked for, and all is on the GPU.
                unsafe {
                    if inverts {
                        solved(
                            stringify!($potri),
                            solver::$potri(handle, UPPER, n, square, n, work, length, info),
                        )
                    } else {
                        solved(
                            stringify!($potrf),
                            solver::$potrf(handle, UPPER, n, square, n, work, length, info),
                        )
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

impl Libraries {
    /// Whether cuBLAS is on this machine.
    pub(super) fn has_blas() -> bool {
        // SAFETY: it loads a library by its usual name, whose initialisers are NVIDIA's.
        unsafe { blas::is_culib_present() }
    }

    /// Whether cuSOLVER is on this machine.
    pub(super) fn has_solver() -> bool {
        // SAFETY: as above.
        unsafe { solver::is_culib_present() }
    }

    /// Handles on the driver's stream. Products are of f32 or of exact bf16, summed in f32: neither TF32 nor reduced sums are allowed.
    pub(super) fn open(driver: &Driver) -> Result<Self, CudaError> {
        driver.bind()?;
        let mut workspace = driver.buffer::<u8>(WORKSPACE)?;
        let stream = driver.stream().cu_stream();
        let mut handles = Handles { blas: null_mut(), solver: null_mut() };
        let mut version = 0;
        // SAFETY: the handles are written before they are used; stream and workspace live as long as they do.
        unsafe {
            multiplied("cublasCreate", blas::cublasCreate_v2(&raw mut handles.blas))?;
            multiplied("cublasSetStream", blas::cublasSetStream_v2(handles.blas, stream.cast()))?;
            multiplied("cublasGetVersion", blas::cublasGetVersion_v2(handles.blas, &raw mut version))?;
            let place = workspace.output().pointer as *mut _;
            multiplied("cublasSetWorkspace", blas::cublasSetWorkspace_v2(handles.blas, place, WORKSPACE))?;
            let exact = blas::cublasMath_t::CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION;
            multiplied("cublasSetMathMode", blas::cublasSetMathMode(handles.blas, exact))?;
            solved("cusolverDnCreate", solver::cusolverDnCreate(&raw mut handles.solver))?;
            solved("cusolverDnSetStream", solver::cusolverDnSetStream(handles.solver, stream.cast()))?;
            let same_bits = solver::cusolverDeterministicMode_t::CUSOLVER_DETERMINISTIC_RESULTS;
            let mode = solver::cusolverDnSetDeterministicMode(handles.solver, same_bits);
            solved("cusolverDnSetDeterministicMode", mode)?;
        }
        Ok(Self { handles: Mutex::new(handles), version, _workspace: workspace })
    }

    /// The version of cuBLAS, as it says it: 130000 for 13.0.
    pub(super) const fn version(&self) -> i32 {
        self.version
    }

    /// out = factor * left * right + keep * out, summed in f32.
    pub(super) fn multiply<T: Factor>(
        &self,
        sizes: Sizes,
        factor: f32,
        left: Operand<'_, T>,
        right: Operand<'_, T>,
        keep: f32,
        out: Out<'_, f32>,
    ) -> Result<(), CudaError> {
        let Sizes { rows, columns, inner, stride } = sizes;
        let [m, n, k, out_stride] = [columns, rows, inner, stride].map(number);
        let (m, n, k, out_stride) = (m?, n?, k?, out_stride?);
        let (left_stride, right_stride) = (number(left.stride)?, number(right.stride)?);
        let operation = |transposed: bool| {
            if transposed {
                blas::cublasOperation_t::CUBLAS_OP_T
            } else {
                blas::cublasOperation_t::CUBLAS_OP_N
            }
        };
        let handles = self.handles.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: a row-major product is the column-major one of the transposes, in the other order. The operands are those of buffers that
        // the caller holds, with the sizes it says.
        let status = unsafe {
            blas::cublasGemmEx(
                handles.blas,
                operation(right.transposed),
                operation(left.transposed),
                m,
                n,
                k,
                from_ref(&factor).cast(),
                right.values.pointer as *const _,
                T::TYPE,
                right_stride,
                left.values.pointer as *const _,
                T::TYPE,
                left_stride,
                from_ref(&keep).cast(),
                out.pointer as *mut _,
                f32::TYPE,
                out_stride,
                blas::cublasComputeType_t::CUBLAS_COMPUTE_32F,
                blas::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
            )
        };
        multiplied("cublasGemmEx", status)
    }

    /// Factorises the upper triangle of a square (n x n) in place: U^T U. False when a pivot fails; the triangle is of no use then.
    pub(super) fn factorise<T: Factorised>(
        &self,
        driver: &Driver,
        square: &mut Buffer<T>,
        n: usize,
    ) -> Result<bool, CudaError> {
        self.in_place(driver, square, n, false)
    }

    /// Replaces the factor by the upper triangle of (U^T U)^-1. False when a pivot is 0.
    pub(super) fn invert<T: Factorised>(
        &self,
        driver: &Driver,
        square: &mut Buffer<T>,
        n: usize,
    ) -> Result<bool, CudaError> {
        self.in_place(driver, square, n, true)
    }

    fn in_place<T: Factorised>(
        &self,
        driver: &Driver,
        square: &mut Buffer<T>,
        n: usize,
        inverts: bool,
    ) -> Result<bool, CudaError> {
        driver.bind()?;
        let size = number(n)?;
        let handles = self.handles.lock().unwrap_or_else(PoisonError::into_inner);
        let place = square.output().pointer as *mut T;
        let length = T::workspace(handles.solver, size, place)?;
        let mut work = driver.buffer::<T>(length as usize)?;
        let mut info = driver.zeros::<i32>(1)?;
        let work = (work.output().pointer as *mut T, length);
        T::call(inverts, handles.solver, size, place, work, info.output().pointer as *mut i32)?;
        let mut said = [0];
        // Waits until the call is done: only then may the workspace go.
        driver.read(&info, &mut said)?;
        match said[0] {
            0 => Ok(true),
            1.. => Ok(false),
            _ => Err(CudaError::Call {
                call: "cuSOLVER",
                problem: format!("argument {} is invalid", -said[0]),
            }),
        }
    }
}

/// A size as the libraries take it.
fn number(size: usize) -> Result<i32, CudaError> {
    i32::try_from(size).map_err(|_| CudaError::Size { what: "a matrix", size })
}

fn multiplied(call: &'static str, status: blas::cublasStatus_t) -> Result<(), CudaError> {
    match status {
        blas::cublasStatus_t::CUBLAS_STATUS_SUCCESS => Ok(()),
        _ => Err(CudaError::Call { call, problem: format!("{status:?}") }),
    }
}

fn solved(call: &'static str, status: solver::cusolverStatus_t) -> Result<(), CudaError> {
    match status {
        solver::cusolverStatus_t::CUSOLVER_STATUS_SUCCESS => Ok(()),
        _ => Err(CudaError::Call { call, problem: format!("{status:?}") }),
    }
}
