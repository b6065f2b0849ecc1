//! The operations of text encoders on a GPU. Products take bf16, or f32 where the encoders are computed in that, and are summed in f32. The stream
//! of tokens, norms, softmax and activation functions are f32.
//!
//! Nothing here waits for the GPU but what brings a result to the host.

use candle_core::{DType, Tensor};

use super::kernels::Launch;
use super::matrix::{CudaMatrix, NumberType};
use super::ops::{CudaOps, into_gpu, on_gpu};
use super::pointer::In;
use super::products::{Operand, ProductBatch, ProductSizes};
use crate::checkpoint::Weights;
use crate::device::memory::ALIGNED;
use crate::device::transfers::TransferKind;
use crate::model::Matrix;
use crate::model::ops::{ActivationFunction, TextLinear, TextNorm, TextOps, WrittenIn};
use crate::{Error, Result};

impl ActivationFunction {
    /// The number by which `kernels/text.cu` knows it.
    const fn number(self) -> u32 {
        match self {
            Self::QuickGelu => 1,
            Self::Gelu => 2,
            Self::GeluTanh => 3,
            Self::Relu => 4,
            Self::Silu => 5,
        }
    }
}

/// No function.
const AS_IT_IS: u32 = 0;

impl TextOps for CudaOps {
    fn import_rows(&self, matrix: Tensor) -> Result<Matrix> {
        Ok(CudaMatrix::upload(&self.device, TransferKind::Inputs, &matrix)?.into())
    }

    fn export(&self, matrix: &Matrix) -> Result<Tensor> {
        on_gpu(matrix)?.to_host(TransferKind::Encodings)
    }

    fn weight(&self, weights: &Weights, name: &str, shape: [usize; 2]) -> Result<Matrix> {
        let entry = weights.entry_of(name, &shape)?;
        let kind = TransferKind::Weights;
        let Some(numbers) = NumberType::of(entry.dtype()) else {
            let tensor = weights.tensor(name, &shape, DType::F32)?;
            return Ok(self.for_products(CudaMatrix::upload(&self.device, kind, &tensor)?)?.into());
        };
        let stored = CudaMatrix::of_bytes(&self.device, kind, numbers, shape, &weights.bytes(name)?)?;
        Ok(self.for_products(stored)?.into())
    }

    fn vector(&self, weights: &Weights, name: &str, length: usize) -> Result<Matrix> {
        let vector = weights.tensor(name, &[length], DType::F32)?;
        Ok(CudaMatrix::upload(&self.device, TransferKind::Weights, &vector)?.into())
    }

    fn norm(&self, x: &Matrix, by: &TextNorm, written: WrittenIn) -> Result<Matrix> {
        let (x, weight) = (on_gpu(x)?, on_gpu(&by.weight)?);
        let bias = by.bias.as_ref().map(on_gpu).transpose()?;
        let (rows, width) = (x.rows(), x.columns());
        [Some(weight), bias].into_iter().flatten().try_for_each(|of| check(of, NumberType::F32, 1, width))?;
        check(x, NumberType::F32, rows, width)?;
        let mut out = CudaMatrix::new(&self.device, self.type_of(written), rows, width)?;
        let (driver, launch, epsilon) = (self.device.driver(), Launch::row_sums(rows), by.epsilon);
        let (numbers, x, weight) = (out.numbers(), x.input(), weight.input());
        match bias {
            Some(bias) => {
                let bias = bias.input();
                driver.layer_norm(numbers, launch, x, weight, bias, rows, width, epsilon, out.output()?)?;
            }
            None => driver.rms_norm(numbers, launch, x, weight, rows, width, epsilon, out.output()?)?,
        }
        Ok(out.into())
    }

    fn linear(&self, x: &Matrix, layer: &TextLinear, written: WrittenIn) -> Result<Matrix> {
        let (x, numbers) = (on_gpu(x)?, self.type_of(written));
        match &layer.bias {
            None => Ok(self.text_product(x, layer, numbers)?.into()),
            Some(_) => self.finished(x, layer, None, AS_IT_IS, numbers),
        }
    }

    fn add_linear(&self, residual: Matrix, x: &Matrix, layer: &TextLinear) -> Result<Matrix> {
        let (x, weight) = (on_gpu(x)?, self.text_weight(on_gpu(x)?, layer)?);
        let mut residual = into_gpu(residual)?.unshared()?;
        let (rows, width) = (x.rows(), weight.rows());
        check(&residual, NumberType::F32, rows, width)?;
        self.count(rows, x.columns(), width);
        let product = self.product_of(x, weight);
        self.device.products().add_product(product, residual.output()?)?;
        if let Some(bias) = bias_of(layer, width)? {
            let launch = Launch::row_parts(rows, width);
            let driver = self.device.driver();
            driver.add_bias(NumberType::F32, launch, residual.output()?, bias.input(), rows, width)?;
        }
        Ok(residual.into())
    }

    fn activated(
        &self,
        x: &Matrix,
        up: &TextLinear,
        gate: Option<&TextLinear>,
        function: ActivationFunction,
    ) -> Result<Matrix> {
        self.finished(on_gpu(x)?, up, gate, function.number(), self.numbers)
    }

    fn biased_attention(
        &self,
        projected: [&Matrix; 3],
        bias: &Matrix,
        heads: usize,
        scale: f64,
    ) -> Result<Matrix> {
        let ([q, k, v], bias) = (projected.map(on_gpu), on_gpu(bias)?);
        let (q, k, v) = (q?, k?, v?);
        let (tokens, width) = (q.rows(), q.columns());
        [q, k, v].into_iter().try_for_each(|of| check(of, self.numbers, tokens, width))?;
        check(bias, NumberType::F32, bias.rows(), tokens)?;
        if heads == 0 || !width.is_multiple_of(heads) || ![tokens, heads * tokens].contains(&bias.rows()) {
            let problem = format!("a bias of {} rows fits no {heads} heads of {width}", bias.rows());
            return Err(Error::Argument(problem));
        }
        let (head, stride) = (width / heads, tokens.next_multiple_of(ALIGNED));
        let (rows, products) = (heads * tokens, self.device.products());
        let mut scores = CudaMatrix::new(&self.device, NumberType::F32, rows, stride)?;
        self.count(2 * tokens, width, tokens);
        let product = ProductBatch {
            numbers: self.numbers,
            sizes: ProductSizes { rows: tokens, columns: tokens, inner: head, stride },
            left: Operand { values: q.input(), stride: width, transposed: false },
            right: Operand { values: k.input(), stride: width, transposed: true },
            steps: [head, head, tokens * stride],
            count: heads,
        };
        products.multiply_to_f32(product, scores.output()?)?;
        let mut shares = self.empty(rows, stride)?;
        self.device.driver().biased_softmax(
            self.numbers,
            Launch::row_sums(rows),
            scores.input(),
            bias.input(),
            rows,
            bias.rows(),
            tokens,
            stride,
            scale as f32,
            shares.output()?,
        )?;
        drop(scores);
        let mut out = self.empty(tokens, width)?;
        let product = ProductBatch {
            numbers: self.numbers,
            sizes: ProductSizes { rows: tokens, columns: head, inner: tokens, stride: width },
            left: Operand { values: shares.input(), stride, transposed: false },
            right: Operand { values: v.input(), stride: width, transposed: false },
            steps: [tokens * stride, head, head],
            count: heads,
        };
        products.multiply_numbers(product, out.output()?)?;
        Ok(out.into())
    }

    fn row(&self, x: &Matrix, row: usize) -> Result<Matrix> {
        let x = on_gpu(x)?;
        let mut one = CudaMatrix::new(&self.device, x.numbers(), 1, x.columns())?;
        one.write_rows(0, x, row, 1)?;
        Ok(one.into())
    }
}

impl CudaOps {
    const fn type_of(&self, written: WrittenIn) -> NumberType {
        match written {
            WrittenIn::ProductType => self.numbers,
            WrittenIn::F32 => NumberType::F32,
        }
    }

    /// A weight in the type of products.
    fn for_products(&self, stored: CudaMatrix) -> Result<CudaMatrix> {
        if stored.numbers() == self.numbers {
            return Ok(stored);
        }
        let (rows, columns) = (stored.rows(), stored.columns());
        let mut out = self.empty(rows, columns)?;
        let (driver, launch) = (self.device.driver(), Launch::row_parts(rows, columns));
        let from = stored.input();
        match self.numbers {
            NumberType::F32 => driver.widen(stored.numbers(), launch, from, rows, columns, out.output()?)?,
            NumberType::Bf16 => {
                driver.round_to_bf16(stored.numbers(), launch, from, rows, columns, out.output()?)?
            }
            NumberType::F16 => {
                return Err(Error::Argument(
                    "text encoders are not computed in f16: they overflow".to_owned(),
                ));
            }
        }
        Ok(out)
    }

    /// The weight of a linear of `x`.
    fn text_weight<'a>(&self, x: &CudaMatrix, layer: &'a TextLinear) -> Result<&'a CudaMatrix> {
        let weight = on_gpu(&layer.weight)?;
        check(weight, self.numbers, weight.rows(), x.columns())?;
        check(x, self.numbers, x.rows(), x.columns())?;
        Ok(weight)
    }

    fn product_of<'a>(&self, x: &'a CudaMatrix, weight: &'a CudaMatrix) -> ProductBatch<'a> {
        let (rows, columns, inner) = (x.rows(), weight.rows(), x.columns());
        ProductBatch {
            numbers: self.numbers,
            sizes: ProductSizes { rows, columns, inner, stride: columns },
            left: Operand { values: x.input(), stride: inner, transposed: false },
            right: Operand { values: weight.input(), stride: inner, transposed: true },
            steps: [0; 3],
            count: 1,
        }
    }

    /// x W^T, without the bias, in the type of products or in f32.
    fn text_product(&self, x: &CudaMatrix, layer: &TextLinear, numbers: NumberType) -> Result<CudaMatrix> {
        let weight = self.text_weight(x, layer)?;
        self.count(x.rows(), x.columns(), weight.rows());
        let mut out = CudaMatrix::new(&self.device, numbers, x.rows(), weight.rows())?;
        let (products, product) = (self.device.products(), self.product_of(x, weight));
        if numbers == self.numbers {
            products.multiply_numbers(product, out.output()?)?;
        } else {
            products.multiply_to_f32(product, out.output()?)?;
        }
        Ok(out)
    }

    /// function(x W^T + b), times another linear's product where there is a gate.
    fn finished(
        &self,
        x: &CudaMatrix,
        layer: &TextLinear,
        gate: Option<&TextLinear>,
        function: u32,
        numbers: NumberType,
    ) -> Result<Matrix> {
        let product = self.text_product(x, layer, NumberType::F32)?;
        let (rows, width) = (product.rows(), product.columns());
        let bias = bias_of(layer, width)?;
        let gate = gate.map(|gate| match gate.bias {
            None => self.text_product(x, gate, NumberType::F32),
            Some(_) => Err(Error::Argument("a gate of a text encoder has no bias".to_owned())),
        });
        let gate = gate.transpose()?;
        gate.iter().try_for_each(|gate| check(gate, NumberType::F32, rows, width))?;
        let mut out = CudaMatrix::new(&self.device, numbers, rows, width)?;
        self.device.driver().finish_product(
            numbers,
            Launch::row_parts(rows, width),
            product.input(),
            bias.map_or(In::none(), CudaMatrix::input),
            gate.as_ref().map_or(In::none(), CudaMatrix::input),
            rows,
            width,
            function,
            out.output()?,
        )?;
        Ok(out.into())
    }
}

/// The bias of a linear with so many outputs.
fn bias_of(layer: &TextLinear, width: usize) -> Result<Option<&CudaMatrix>> {
    let bias = layer.bias.as_ref().map(on_gpu).transpose()?;
    bias.iter().try_for_each(|bias| check(bias, NumberType::F32, 1, width))?;
    Ok(bias)
}

/// Refuses a matrix of another type or other sizes than those it is taken for.
fn check(matrix: &CudaMatrix, numbers: NumberType, rows: usize, columns: usize) -> Result<()> {
    let found = (matrix.numbers(), matrix.rows(), matrix.columns());
    if found == (numbers, rows, columns) {
        return Ok(());
    }
    let problem = format!("a text encoder was given a matrix {found:?} for {:?}", (numbers, rows, columns));
    Err(Error::Argument(problem))
}
