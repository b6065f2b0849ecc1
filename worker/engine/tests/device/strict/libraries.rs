//! What the libraries in host memory hold programs to.

use std::ptr::null_mut;
use std::thread;

use cudarc::cublas::sys as blas;
use cudarc::cusolver::sys as solver;
use cudarc::driver::result::{self, stream};

use super::{gpu, queue};

use blas::cublasComputeType_t::{CUBLAS_COMPUTE_32F as IN_F32, CUBLAS_COMPUTE_64F as IN_F64};
use blas::cublasStatus_t as Status;
use blas::cudaDataType::{CUDA_R_16BF as BF16, CUDA_R_16F as F16, CUDA_R_32F as F32, CUDA_R_64F as F64};

/// Bytes of the workspace.
const WORKSPACE: usize = 4096;

/// A product of 4 x 4 matrices, or what is wrong with it.
#[derive(Clone, Copy)]
struct Product {
    rows: i32,
    strides: [i32; 3],
    types: [blas::cudaDataType; 3],
    compute: blas::cublasComputeType_t,
    /// Bytes that the first factor lies behind its memory's beginning.
    offset: u64,
}

const GOOD: Product = Product { rows: 4, strides: [4; 3], types: [F32; 3], compute: IN_F32, offset: 0 };

/// What cuBLAS says of a product in this memory.
fn multiplied(handle: blas::cublasHandle_t, memory: u64, product: Product) -> Status {
    let Product { rows, strides: [a, b, c], types: [of_a, of_b, of_c], compute, offset } = product;
    let (none, algorithm) =
        (blas::cublasOperation_t::CUBLAS_OP_N, blas::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT);
    // Enough for a number of either type.
    let (one, zero) = ([1f64], [0f64]);
    let (left, right, out) =
        ((memory + offset) as *const _, (memory + 256) as *const _, (memory + 512) as *mut _);
    // SAFETY: the fake library checks all addresses, and the scales are alive.
    unsafe {
        let (one, zero) = (one.as_ptr().cast(), zero.as_ptr().cast());
        blas::cublasGemmEx(
            handle, none, none, rows, 4, 4, one, left, of_a, a, right, of_b, b, zero, out, of_c, c, compute,
            algorithm,
        )
    }
}

#[test]
fn products_that_cublas_would_not_make_are_refused() {
    let Some(_gpu) = gpu() else { return };
    let queue = queue();
    // SAFETY: the fake library checks all addresses, and nobody else has this memory.
    unsafe {
        let memory = result::malloc_async(queue, WORKSPACE).unwrap();
        let workspace = result::malloc_async(queue, WORKSPACE).unwrap();
        result::memset_d8_async(memory, 0, WORKSPACE, queue).unwrap();
        let mut handle = null_mut();
        assert_eq!(blas::cublasCreate_v2(&raw mut handle), Status::CUBLAS_STATUS_SUCCESS);
        let exact = blas::cublasMath_t::CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION;
        let set_workspace = |at: u64, bytes| blas::cublasSetWorkspace_v2(handle, at as *mut _, bytes);
        let set_stream = || {
            assert_eq!(blas::cublasSetStream_v2(handle, queue.cast()), Status::CUBLAS_STATUS_SUCCESS);
        };
        // Without a workspace of a fixed size, or with reduced sums, bits would not repeat.
        set_stream();
        assert_eq!(multiplied(handle, memory, GOOD), Status::CUBLAS_STATUS_INVALID_VALUE);
        assert_eq!(set_workspace(workspace, WORKSPACE), Status::CUBLAS_STATUS_SUCCESS);
        assert_eq!(multiplied(handle, memory, GOOD), Status::CUBLAS_STATUS_INVALID_VALUE);
        assert_eq!(blas::cublasSetMathMode(handle, exact), Status::CUBLAS_STATUS_SUCCESS);
        assert_eq!(multiplied(handle, memory, GOOD), Status::CUBLAS_STATUS_SUCCESS);
        // A stream takes the workspace back.
        set_stream();
        assert_eq!(multiplied(handle, memory, GOOD), Status::CUBLAS_STATUS_INVALID_VALUE);
        assert_eq!(set_workspace(workspace + 16, 256), Status::CUBLAS_STATUS_INVALID_VALUE);
        assert_eq!(set_workspace(workspace, WORKSPACE + 1), Status::CUBLAS_STATUS_INVALID_VALUE);
        assert_eq!(set_workspace(workspace, WORKSPACE), Status::CUBLAS_STATUS_SUCCESS);
        let with_types = |types, compute| Product { types, compute, ..GOOD };
        for (types, compute) in
            [([BF16, BF16, F32], IN_F32), ([BF16; 3], IN_F32), ([F16, F16, F32], IN_F32), ([F64; 3], IN_F64)]
        {
            let status = multiplied(handle, memory, with_types(types, compute));
            assert_eq!(status, Status::CUBLAS_STATUS_SUCCESS, "{types:?}");
        }
        for (types, compute) in [
            ([BF16, F16, F32], IN_F32),
            ([F32, F32, BF16], IN_F32),
            ([BF16, BF16, F16], IN_F32),
            ([F64; 3], IN_F32),
            ([F32; 3], IN_F64),
        ] {
            let status = multiplied(handle, memory, with_types(types, compute));
            assert_eq!(status, Status::CUBLAS_STATUS_NOT_SUPPORTED, "{types:?}");
        }
        for wrong in [
            Product { strides: [3, 4, 4], ..GOOD },
            Product { strides: [4, 3, 4], ..GOOD },
            Product { strides: [4, 4, 3], ..GOOD },
            Product { rows: 0, ..GOOD },
            Product { rows: 2000, strides: [2000, 4, 2000], ..GOOD },
            Product { offset: 2, ..GOOD },
        ] {
            assert_eq!(multiplied(handle, memory, wrong), Status::CUBLAS_STATUS_INVALID_VALUE);
        }
        stream::synchronize(queue).unwrap();
        // Who calls has to say which GPU it works with.
        let address = handle as usize;
        let elsewhere = thread::spawn(move || multiplied(address as *mut _, memory, GOOD)).join().unwrap();
        assert_eq!(elsewhere, Status::CUBLAS_STATUS_NOT_INITIALIZED);
        assert_eq!(blas::cublasDestroy_v2(handle), Status::CUBLAS_STATUS_SUCCESS);
    }
}

#[test]
fn factorisations_take_the_room_that_they_ask_for_and_nan_for_a_pivot() {
    let Some(_gpu) = gpu() else { return };
    let (queue, n) = (queue(), 4);
    let lower = solver::cublasFillMode_t::CUBLAS_FILL_MODE_LOWER;
    let success = solver::cusolverStatus_t::CUSOLVER_STATUS_SUCCESS;
    // SAFETY: the fake library checks all addresses, and nobody else has this memory.
    unsafe {
        let memory = result::malloc_async(queue, WORKSPACE).unwrap();
        let (square, work, info) =
            (memory as *mut f32, (memory + 1024) as *mut f32, (memory + 2048) as *mut i32);
        let mut handle = null_mut();
        assert_eq!(solver::cusolverDnCreate(&raw mut handle), success);
        assert_eq!(solver::cusolverDnSetStream(handle, queue.cast()), success);
        let mut lengths = [0; 2];
        let [factor, inverse] = &mut lengths;
        assert_eq!(solver::cusolverDnSpotrf_bufferSize(handle, lower, n, square, n, factor), success);
        assert_eq!(solver::cusolverDnSpotri_bufferSize(handle, lower, n, square, n, inverse), success);
        let [factor, inverse] = lengths;
        assert!(inverse > factor, "what a factor works in does not do for an inverse");
        // All bits of a number set make NaN.
        result::memset_d8_async(memory, 0xff, WORKSPACE, queue).unwrap();
        let factorise = |length| solver::cusolverDnSpotrf(handle, lower, n, square, n, work, length, info);
        let invert = |length| solver::cusolverDnSpotri(handle, lower, n, square, n, work, length, info);
        assert_eq!(factorise(factor), success);
        let mut said = [1i32];
        result::memcpy_dtoh_async(&mut said, info as u64, queue).unwrap();
        stream::synchronize(queue).unwrap();
        assert_eq!(said, [0]);
        assert_eq!(invert(inverse), success);
        stream::synchronize(queue).unwrap();
        for short in [factorise(factor - 1), invert(inverse - 1), invert(factor)] {
            assert_eq!(short, solver::cusolverStatus_t::CUSOLVER_STATUS_INVALID_VALUE);
        }
        let address = handle as usize;
        let (at, length) = (memory, factor);
        let elsewhere = thread::spawn(move || {
            let (square, work, info) = (at as *mut f32, (at + 1024) as *mut f32, (at + 2048) as *mut i32);
            solver::cusolverDnSpotrf(address as *mut _, lower, n, square, n, work, length, info)
        });
        assert_eq!(elsewhere.join().unwrap(), solver::cusolverStatus_t::CUSOLVER_STATUS_NOT_INITIALIZED);
        assert_eq!(solver::cusolverDnDestroy(handle), success);
    }
}
