//! A block's operations on a GPU. Products are cuBLAS's, in the job's type and summed in f32; what surrounds them are kernels.
//!
//! Nothing here waits for the GPU or copies an activation to the host.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use candle_core::DType;

use super::CudaDevice;
use super::error::MemoryPhase;
use super::kernels::Launch;
use super::matrix::{CudaMatrix, NumberType};
use super::products::{Operand, ProductBatch, ProductSizes};
use crate::device::memory::{PATCHES, SCORES};
use crate::device::transfers::TransferKind;
use crate::model::Matrix;
use crate::model::ops::{BlockOps, LinearTensors, Modulation, Parameter, Projected, Rotary};
use crate::{Error, Result};

/// The operations of blocks on one GPU.
#[derive(Debug)]
pub(crate) struct CudaOps {
    pub(super) device: Arc<CudaDevice>,
    pub(super) numbers: NumberType,
    /// Scores of an attention in memory at a time.
    pub(super) scores: usize,
    /// Numbers in which pixels are laid out for a convolution at a time.
    pub(super) patches: usize,
    /// Floating-point operations of all products so far.
    counted: AtomicU64,
}

impl Clone for CudaOps {
    /// The same operations with a count of their own.
    fn clone(&self) -> Self {
        let (device, counted) = (Arc::clone(&self.device), AtomicU64::new(0));
        Self { device, numbers: self.numbers, scores: self.scores, patches: self.patches, counted }
    }
}

impl CudaOps {
    /// For blocks that compute in f32, bf16 or f16; none for another type.
    pub(crate) fn new(device: &Arc<CudaDevice>, dtype: DType) -> Option<Self> {
        let (device, counted) = (Arc::clone(device), AtomicU64::new(0));
        Some(Self { device, numbers: NumberType::of(dtype)?, scores: SCORES, patches: PATCHES, counted })
    }

    /// The same with so many scores in memory at a time.
    #[cfg(test)]
    pub(crate) fn with_scores(self, scores: usize) -> Self {
        Self { scores, ..self }
    }

    /// The same with so many numbers laid out at a time.
    #[cfg(test)]
    pub(crate) fn with_patches(self, patches: usize) -> Self {
        Self { patches, ..self }
    }

    /// Floating-point operations of all products so far.
    pub(crate) fn counted(&self) -> u64 {
        self.counted.load(Ordering::Relaxed)
    }

    pub(super) fn count(&self, rows: usize, n: usize, out: usize) {
        self.counted.fetch_add(2 * rows as u64 * n as u64 * out as u64, Ordering::Relaxed);
    }

    pub(super) fn empty(&self, rows: usize, columns: usize) -> Result<CudaMatrix> {
        Ok(CudaMatrix::new(&self.device, self.numbers, rows, columns)?)
    }

    /// A parameter's copy on this GPU, made at its first use and kept with it.
    fn parameter<'a>(&self, parameter: &'a Parameter) -> Result<&'a CudaMatrix> {
        let upload = |tensor: &_| match CudaMatrix::upload(&self.device, TransferKind::Weights, tensor) {
            Err(Error::Cuda(error)) => Err(error.during(MemoryPhase::Weights).into()),
            uploaded => Ok(uploaded?.into()),
        };
        on_gpu(parameter.on_device(upload)?)
    }

    /// x W^T, without the bias.
    fn product(&self, x: &CudaMatrix, layer: &LinearTensors) -> Result<CudaMatrix> {
        let weight = self.parameter(&layer.weight)?;
        let (rows, n, out) = (x.rows(), x.columns(), weight.rows());
        if weight.columns() != n || x.numbers() != self.numbers || weight.numbers() != self.numbers {
            let problem = format!("{rows} x {n} is no input of a linear of {out} x {}", weight.columns());
            return Err(Error::Argument(problem));
        }
        self.count(rows, n, out);
        let mut product = self.empty(rows, out)?;
        let left = Operand { values: x.input(), stride: n, transposed: false };
        let right = Operand { values: weight.input(), stride: n, transposed: true };
        let sizes = ProductSizes { rows, columns: out, inner: n, stride: out };
        let one = ProductBatch { numbers: self.numbers, sizes, left, right, steps: [0; 3], count: 1 };
        self.device.products().multiply_numbers(one, product.output()?)?;
        Ok(product)
    }

    /// Checks that there are parts of a modulation, as wide as `x`, for the items of `x`; gives the rows of an item.
    fn tokens(&self, x: &CudaMatrix, by: &CudaMatrix, width: usize, parts: [usize; 2]) -> Result<usize> {
        let fits = x.columns() == width && parts.iter().all(|part| (part + 1) * width <= by.columns());
        if !fits || by.rows() == 0 || !x.rows().is_multiple_of(by.rows()) || by.numbers() != x.numbers() {
            let sizes = [x.rows(), x.columns(), by.rows(), by.columns()];
            return Err(Error::Argument(format!("a modulation does not fit its stream: {sizes:?}")));
        }
        Ok(x.rows() / by.rows())
    }
}

impl BlockOps for CudaOps {
    fn import(&self, matrix: Matrix) -> Result<Matrix> {
        match matrix {
            Matrix::Host(tensor) => {
                Ok(CudaMatrix::upload(&self.device, TransferKind::Inputs, &tensor)?.into())
            }
            Matrix::Cuda(matrix) => Ok(matrix.into()),
        }
    }

    fn spreads_work(&self) -> bool {
        false
    }

    fn give(&self, activation: Matrix) -> Result<()> {
        drop(activation);
        Ok(())
    }

    fn linear(&self, x: &Matrix, layer: &LinearTensors) -> Result<Matrix> {
        let mut y = self.product(on_gpu(x)?, layer)?;
        let (rows, out, bias) = (y.rows(), y.columns(), self.parameter(&layer.bias)?);
        let launch = Launch::row_parts(rows, out);
        self.device.driver().add_bias(self.numbers, launch, y.output()?, bias.input(), rows, out)?;
        Ok(y.into())
    }

    fn linear_gelu(&self, x: &Matrix, layer: &LinearTensors) -> Result<Matrix> {
        let mut y = self.product(on_gpu(x)?, layer)?;
        let (rows, out, bias) = (y.rows(), y.columns(), self.parameter(&layer.bias)?);
        let launch = Launch::row_parts(rows, out);
        self.device.driver().gelu(self.numbers, launch, y.output()?, bias.input(), rows, out)?;
        Ok(y.into())
    }

    fn silu(&self, x: Matrix) -> Result<Matrix> {
        let mut x = into_gpu(x)?.unshared()?;
        let (rows, width) = (x.rows(), x.columns());
        self.device.driver().silu(self.numbers, Launch::row_parts(rows, width), x.output()?, rows, width)?;
        Ok(x.into())
    }

    fn add_rows(&self, x: Matrix, added: &Matrix) -> Result<Matrix> {
        let (mut x, added) = (into_gpu(x)?.unshared()?, on_gpu(added)?);
        let (all, width, rows) = (x.rows(), x.columns(), added.rows());
        let fits = added.columns() == width && rows > 0 && all.is_multiple_of(rows);
        if !fits || added.numbers() != x.numbers() {
            let problem = format!("{rows} rows of {} are not added to {all} of {width}", added.columns());
            return Err(Error::Argument(problem));
        }
        let launch = Launch::row_parts(rows, width);
        let driver = self.device.driver();
        driver.add_rows(self.numbers, launch, x.output()?, added.input(), all / rows, rows, width)?;
        Ok(x.into())
    }

    fn last_tokens(&self, tokens: &Matrix, batch: usize, count: usize) -> Result<Matrix> {
        let tokens = on_gpu(tokens)?;
        let of_item = tokens.rows() / batch.max(1);
        let Some(first) = of_item.checked_sub(count) else {
            return Err(Error::Argument(format!("items of {of_item} tokens have no last {count}")));
        };
        let mut last = self.empty(batch * count, tokens.columns())?;
        for item in 0..batch {
            last.write_rows(item * count, tokens, item * of_item + first, count)?;
        }
        Ok(last.into())
    }

    fn linear_head_norm(
        &self,
        x: &Matrix,
        layer: &LinearTensors,
        norm: Option<&Parameter>,
    ) -> Result<Matrix> {
        let Some(norm) = norm else { return self.linear(x, layer) };
        let mut y = self.product(on_gpu(x)?, layer)?;
        let (norm, bias) = (self.parameter(norm)?, self.parameter(&layer.bias)?);
        let (rows, out, head) = (y.rows(), y.columns(), norm.columns());
        if head == 0 || !out.is_multiple_of(head) {
            return Err(Error::Argument(format!("{out} features are no whole heads of {head}")));
        }
        let (heads, numbers) = (out / head, self.numbers);
        let launch = Launch::row_sums(rows * heads);
        let driver = self.device.driver();
        driver.head_norm(numbers, launch, y.output()?, bias.input(), norm.input(), rows, heads, head)?;
        Ok(y.into())
    }

    fn add_gated_linear(
        &self,
        residual: Matrix,
        x: &Matrix,
        layer: &LinearTensors,
        by: &Modulation<Matrix>,
        gate: usize,
    ) -> Result<Matrix> {
        let y = self.product(on_gpu(x)?, layer)?;
        let (values, bias) = (on_gpu(&by.values)?, self.parameter(&layer.bias)?);
        let mut residual = into_gpu(residual)?.unshared()?;
        let (rows, width) = (residual.rows(), residual.columns());
        let tokens = self.tokens(&residual, values, by.width, [gate; 2])?;
        if (y.rows(), y.columns()) != (rows, width) {
            return Err(Error::Argument(format!("a residual of {rows} x {width} gets another matrix")));
        }
        let (stride, gate) = (values.columns(), gate * width);
        self.device.driver().add_gated(
            self.numbers,
            Launch::row_parts(rows, width),
            residual.output()?,
            y.input(),
            bias.input(),
            values.input(),
            rows,
            width,
            tokens,
            stride,
            gate,
        )?;
        Ok(residual.into())
    }

    fn norm_modulate(
        &self,
        x: &Matrix,
        by: &Modulation<Matrix>,
        shift: usize,
        scale: usize,
    ) -> Result<Matrix> {
        let (x, values) = (on_gpu(x)?, on_gpu(&by.values)?);
        let (rows, width) = (x.rows(), x.columns());
        let tokens = self.tokens(x, values, by.width, [shift, scale])?;
        let mut out = self.empty(rows, width)?;
        let (launch, stride) = (Launch::row_sums(rows), values.columns());
        let (scale, shift) = (scale * width, shift * width);
        self.device.driver().norm_modulate(
            self.numbers,
            launch,
            x.input(),
            values.input(),
            rows,
            width,
            tokens,
            stride,
            scale,
            shift,
            out.output()?,
        )?;
        Ok(out.into())
    }

    fn joined(&self, left: &Matrix, right: &Matrix) -> Result<Matrix> {
        let (left, right) = (on_gpu(left)?, on_gpu(right)?);
        let (rows, a, b) = (left.rows(), left.columns(), right.columns());
        if right.rows() != rows || left.numbers() != right.numbers() {
            return Err(Error::Argument(format!("{rows} rows are not joined to {}", right.rows())));
        }
        let mut out = self.empty(rows, a + b)?;
        let launch = Launch::row_parts(rows, a + b);
        let driver = self.device.driver();
        driver.join_columns(self.numbers, launch, left.input(), right.input(), rows, a, b, out.output()?)?;
        Ok(out.into())
    }

    fn sequence(&self, first: &Matrix, second: &Matrix, batch: usize) -> Result<Matrix> {
        self.sequence_of(&[on_gpu(first)?, on_gpu(second)?], batch, 0..batch).map(Matrix::from)
    }

    fn limited(&self, x: Matrix, limit: f32) -> Result<Matrix> {
        let mut x = into_gpu(x)?.unshared()?;
        let (rows, width) = (x.rows(), x.columns());
        let launch = Launch::row_parts(rows, width);
        self.device.driver().limit(self.numbers, launch, x.output()?, rows, width, limit)?;
        Ok(x.into())
    }

    fn rotate(&self, x: Matrix, by: &Rotary<Matrix>, batch: usize) -> Result<Matrix> {
        let mut x = into_gpu(x)?.unshared()?;
        let (cosines, sines) = (on_gpu(&by.cosines)?, on_gpu(&by.sines)?);
        let (rows, width, turned, pairs) = (x.rows(), x.columns(), cosines.rows(), cosines.columns());
        let tokens = rows / batch.max(1);
        let tables = [cosines, sines].iter().all(|table| {
            (table.rows(), table.columns(), table.numbers()) == (turned, pairs, NumberType::F32)
        });
        if turned > tokens || pairs == 0 || !width.is_multiple_of(2 * pairs) || !tables {
            let problem =
                format!("{turned} tokens of {pairs} pairs do not fit {tokens} tokens of {width} features");
            return Err(Error::Argument(problem));
        }
        self.device.driver().rotate(
            self.numbers,
            Launch::row_parts(turned, width),
            x.output()?,
            cosines.input(),
            sines.input(),
            batch,
            tokens,
            turned,
            width,
            pairs,
        )?;
        Ok(x.into())
    }

    fn attention(
        &self,
        streams: &[Projected<'_, Matrix>],
        batch: usize,
        heads: usize,
    ) -> Result<Vec<Matrix>> {
        let keys = streams.iter().map(|stream| on_gpu(stream.keys)).collect::<Result<Vec<_>>>()?;
        let values = streams.iter().map(|stream| on_gpu(stream.values)).collect::<Result<Vec<_>>>()?;
        let queries = streams.iter().filter_map(|stream| stream.queries.map(on_gpu));
        let queries = queries.collect::<Result<Vec<_>>>()?;
        let mut outputs = Vec::with_capacity(queries.len());
        for queries in &queries {
            outputs.push(self.empty(queries.rows(), queries.columns())?);
        }
        for item in 0..batch {
            let keys = self.sequence_of(&keys, batch, item..item + 1)?;
            let values = self.sequence_of(&values, batch, item..item + 1)?;
            for (queries, out) in queries.iter().zip(&mut outputs) {
                let tokens = queries.rows() / batch;
                self.attend(queries, item * tokens..(item + 1) * tokens, [&keys, &values], heads, out)?;
            }
        }
        Ok(outputs.into_iter().map(Matrix::from).collect())
    }
}

impl CudaOps {
    /// The tokens of some of `batch` items: of each, those of all streams one after another.
    fn sequence_of(&self, streams: &[&CudaMatrix], batch: usize, items: Range<usize>) -> Result<CudaMatrix> {
        let Some(first) = streams.first() else {
            return Err(Error::Argument("an attention needs a stream".to_owned()));
        };
        let rows: usize = streams.iter().map(|stream| stream.rows() / batch.max(1)).sum();
        let mut sequence = self.empty(rows * items.len(), first.columns())?;
        let mut at = 0;
        for item in items {
            for stream in streams {
                let tokens = stream.rows() / batch.max(1);
                sequence.write_rows(at, stream, item * tokens, tokens)?;
                at += tokens;
            }
        }
        Ok(sequence)
    }
}

pub(super) fn on_gpu(matrix: &Matrix) -> Result<&CudaMatrix> {
    match matrix {
        Matrix::Cuda(matrix) => Ok(matrix),
        Matrix::Host(_) => Err(not_on_gpu()),
    }
}

pub(super) fn into_gpu(matrix: Matrix) -> Result<CudaMatrix> {
    match matrix {
        Matrix::Cuda(matrix) => Ok(matrix),
        Matrix::Host(_) => Err(not_on_gpu()),
    }
}

fn not_on_gpu() -> Error {
    Error::Argument("a block on a GPU was given a matrix of the host".to_owned())
}
