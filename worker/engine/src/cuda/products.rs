//! Products, by cuBLAS. One of six files that call foreign code.
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::ptr::{from_ref, null_mut};
use std::sync::Mutex;

use cudarc::cublas::sys as blas;
use obsdiff_proto::lock;

use super::CudaError;
use super::driver::{CudaDriver, DeviceBuffer, In, Out};
use super::matrix::NumberType;
use crate::device::memory::WORKSPACE;

/// The oldest cuBLAS that is used, as it says it: that of CUDA 13, like the PTX of the kernels. A folder of an older CUDA may come first
/// where programs look for libraries.
const OLDEST: i32 = 130_000;

/// What cuBLAS calls a type of numbers. It sums the products of each in f32.
const fn type_of(numbers: NumberType) -> blas::cudaDataType {
    match numbers {
        NumberType::F32 => blas::cudaDataType::CUDA_R_32F,
        NumberType::Bf16 => blas::cudaDataType::CUDA_R_16BF,
        NumberType::F16 => blas::cudaDataType::CUDA_R_16F,
    }
}

/// A matrix in row-major order, or its transpose.
#[derive(Clone, Copy, Debug)]
pub(super) struct Operand<'a, T> {
    pub(super) values: In<'a, T>,
    /// Values between the starts of two rows.
    pub(super) stride: usize,
    pub(super) transposed: bool,
}

impl<'a, T> Operand<'a, T> {
    /// The same for a product that gets the type as an argument.
    pub(super) fn of_any_type(self) -> Operand<'a, u8> {
        Operand { values: self.values.bytes(), stride: self.stride, transposed: self.transposed }
    }
}

/// The sizes of a product: out (rows x columns, its rows `stride` apart) = left (rows x inner) * right (inner x columns).
#[derive(Clone, Copy, Debug)]
pub(super) struct ProductSizes {
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) inner: usize,
    pub(super) stride: usize,
}

impl ProductSizes {
    /// Whether there is nothing to do: there is no product, or it sums nothing and all of what was there stays.
    ///
    /// # Errors
    /// When it sums nothing, but what was there does not stay: whoever wants zeros sets them.
    fn changes_nothing(self, keep: f64) -> Result<bool, CudaError> {
        let Self { rows, columns, inner, .. } = self;
        let is_empty = rows == 0 || columns == 0;
        if inner == 0 && !is_empty && keep != 1.0 {
            let problem = format!("{rows} x 0 by 0 x {columns} sums nothing");
            return Err(CudaError::Call { call: "a product", problem });
        }
        Ok(is_empty || inner == 0)
    }
}

/// As many products of one size as `count` says.
#[derive(Clone, Copy, Debug)]
pub(super) struct ProductBatch<'a> {
    /// The type of both factors.
    pub(super) numbers: NumberType,
    pub(super) sizes: ProductSizes,
    pub(super) left: Operand<'a, u8>,
    pub(super) right: Operand<'a, u8>,
    /// Values from one left factor to the next, from one right factor to the next, and from one product to the next.
    pub(super) steps: [usize; 3],
    pub(super) count: usize,
}

/// cuBLAS on one stream. All of them give the same bits, as their workspaces have one size.
#[derive(Debug)]
pub(super) struct Products {
    handle: Mutex<Handle>,
    /// Of cuBLAS, as it says it: 130000 for 13.0.
    version: i32,
    /// cuBLAS uses it as long as its handle lives.
    _workspace: DeviceBuffer<u8>,
}

#[derive(Debug)]
struct Handle(blas::cublasHandle_t);

// SAFETY: cuBLAS allows a handle to move between threads; a mutex lets one thread at a time use it.
unsafe impl Send for Handle {}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: the handle is the one that cuBLAS made, or null where it made none. Nothing can be done about a failure: the process is
        // about to end or the GPU is lost.
        unsafe {
            if !self.0.is_null() {
                let _ = blas::cublasDestroy_v2(self.0);
            }
        }
    }
}

impl Products {
    /// Whether cuBLAS is on this machine.
    pub(super) fn is_present() -> bool {
        // SAFETY: it loads a library by its usual name, whose initialisers are NVIDIA's.
        unsafe { blas::is_culib_present() }
    }

    /// Products on the driver's stream. They are of f32 or of exact bf16, summed in f32: neither TF32 nor reduced sums are allowed. An
    /// environment that would change that is refused when a GPU is opened.
    pub(super) fn open(driver: &CudaDriver) -> Result<Self, CudaError> {
        driver.bind()?;
        let mut workspace = driver.buffer::<u8>(WORKSPACE)?;
        let mut handle = Handle(null_mut());
        let mut version = 0;
        // SAFETY: the handle is written before it is used; stream and workspace live as long as it does.
        unsafe {
            multiplied("cublasCreate", blas::cublasCreate_v2(&raw mut handle.0))?;
            let stream = driver.stream().cu_stream().cast();
            multiplied("cublasSetStream", blas::cublasSetStream_v2(handle.0, stream))?;
            multiplied("cublasGetVersion", blas::cublasGetVersion_v2(handle.0, &raw mut version))?;
            if version < OLDEST {
                return Err(CudaError::OldCublas { found: version });
            }
            let place = workspace.output().pointer as *mut _;
            multiplied("cublasSetWorkspace", blas::cublasSetWorkspace_v2(handle.0, place, WORKSPACE))?;
            let exact = blas::cublasMath_t::CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION;
            multiplied("cublasSetMathMode", blas::cublasSetMathMode(handle.0, exact))?;
        }
        Ok(Self { handle: Mutex::new(handle), version, _workspace: workspace })
    }

    /// The version of cuBLAS, as it says it: 130000 for 13.0.
    pub(super) const fn version(&self) -> i32 {
        self.version
    }

    /// out = factor * left * right + keep * out, in f32.
    pub(super) fn multiply(
        &self,
        sizes: ProductSizes,
        factor: f32,
        left: Operand<'_, f32>,
        right: Operand<'_, f32>,
        keep: f32,
        out: Out<'_, f32>,
    ) -> Result<(), CudaError> {
        let (left, right) = (left.of_any_type(), right.of_any_type());
        let product = ProductBatch { numbers: NumberType::F32, sizes, left, right, steps: [0; 3], count: 1 };
        self.multiply_any(product, [factor, keep], (out.pointer, NumberType::F32))
    }

    /// out = factor * left * right + keep * out, in f64.
    pub(super) fn multiply_f64(
        &self,
        sizes: ProductSizes,
        factor: f64,
        left: Operand<'_, f64>,
        right: Operand<'_, f64>,
        keep: f64,
        out: Out<'_, f64>,
    ) -> Result<(), CudaError> {
        if sizes.changes_nothing(keep)? {
            return Ok(());
        }
        let scales = [from_ref(&factor).cast(), from_ref(&keep).cast()];
        let f64s = blas::cudaDataType::CUDA_R_64F;
        let types = (f64s, f64s, blas::cublasComputeType_t::CUBLAS_COMPUTE_64F);
        self.multiply_one(sizes, scales, left.of_any_type(), right.of_any_type(), out.pointer, types)
    }

    /// out = left * right, summed in f32 and rounded to the factors' type.
    pub(super) fn multiply_numbers(
        &self,
        product: ProductBatch<'_>,
        out: Out<'_, u8>,
    ) -> Result<(), CudaError> {
        self.multiply_any(product, [1.0, 0.0], (out.pointer, product.numbers))
    }

    /// out = left * right, in f32.
    pub(super) fn multiply_to_f32(
        &self,
        product: ProductBatch<'_>,
        out: Out<'_, u8>,
    ) -> Result<(), CudaError> {
        self.multiply_any(product, [1.0, 0.0], (out.pointer, NumberType::F32))
    }

    /// out += left * right, in f32.
    pub(super) fn add_product(&self, product: ProductBatch<'_>, out: Out<'_, u8>) -> Result<(), CudaError> {
        self.multiply_any(product, [1.0, 1.0], (out.pointer, NumberType::F32))
    }

    /// Products times the first factor, plus what was there times the second.
    fn multiply_any(
        &self,
        product: ProductBatch<'_>,
        [factor, keep]: [f32; 2],
        (out, out_numbers): (u64, NumberType),
    ) -> Result<(), CudaError> {
        let ProductBatch { numbers, sizes, left, right, steps, count } = product;
        if count == 0 || sizes.changes_nothing(keep.into())? {
            return Ok(());
        }
        let scales = [from_ref(&factor).cast(), from_ref(&keep).cast()];
        let types = (type_of(numbers), type_of(out_numbers), blas::cublasComputeType_t::CUBLAS_COMPUTE_32F);
        if count == 1 {
            return self.multiply_one(sizes, scales, left, right, out, types);
        }
        let ProductSizes { rows, columns, inner, stride } = sizes;
        let handle = lock(&self.handle);
        let [left_step, right_step, out_step] = steps.map(|step| step as i64);
        // SAFETY: as in `multiply_one`.
        let status = unsafe {
            blas::cublasGemmStridedBatchedEx(
                handle.0,
                operation(right.transposed),
                operation(left.transposed),
                number(columns)?,
                number(rows)?,
                number(inner)?,
                scales[0],
                right.values.pointer as *const _,
                types.0,
                number(right.stride)?,
                right_step,
                left.values.pointer as *const _,
                types.0,
                number(left.stride)?,
                left_step,
                scales[1],
                out as *mut _,
                types.1,
                number(stride)?,
                out_step,
                number(count)?,
                types.2,
                blas::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
            )
        };
        multiplied("cublasGemmStridedBatchedEx", status)
    }

    /// One product times the first scale, plus what was there times the second. Types are those of the factors, of what comes out, and of sums
    /// and scales.
    fn multiply_one(
        &self,
        ProductSizes { rows, columns, inner, stride }: ProductSizes,
        scales: [*const c_void; 2],
        left: Operand<'_, u8>,
        right: Operand<'_, u8>,
        out: u64,
        types: (blas::cudaDataType, blas::cudaDataType, blas::cublasComputeType_t),
    ) -> Result<(), CudaError> {
        let handle = lock(&self.handle);
        // SAFETY: a row-major product is the column-major one of the transposes, in the other order. The operands are those of buffers
        // that the caller holds, with the sizes it says, and the scales are alive.
        let status = unsafe {
            blas::cublasGemmEx(
                handle.0,
                operation(right.transposed),
                operation(left.transposed),
                number(columns)?,
                number(rows)?,
                number(inner)?,
                scales[0],
                right.values.pointer as *const _,
                types.0,
                number(right.stride)?,
                left.values.pointer as *const _,
                types.0,
                number(left.stride)?,
                scales[1],
                out as *mut _,
                types.1,
                number(stride)?,
                types.2,
                blas::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
            )
        };
        multiplied("cublasGemmEx", status)
    }
}

const fn operation(transposed: bool) -> blas::cublasOperation_t {
    if transposed { blas::cublasOperation_t::CUBLAS_OP_T } else { blas::cublasOperation_t::CUBLAS_OP_N }
}

/// A size as the libraries take it.
pub(super) fn number(size: usize) -> Result<i32, CudaError> {
    i32::try_from(size).map_err(|_| CudaError::Size { what: "a matrix", size })
}

fn multiplied(call: &'static str, status: blas::cublasStatus_t) -> Result<(), CudaError> {
    match status {
        blas::cublasStatus_t::CUBLAS_STATUS_SUCCESS => Ok(()),
        _ => Err(CudaError::Call { call, problem: format!("{status:?}") }),
    }
}
