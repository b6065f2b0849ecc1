//! Softmax attention on a GPU: one kernel where it takes heads of that size and numbers of that type, or else two products for each part of the
//! queries and a kernel between them.

use std::f32::consts::LOG2_E;
use std::ops::Range;

use super::driver::CudaDriver;
use super::kernels::Launch;
use super::matrix::{CudaMatrix, NumberType};
use super::ops::CudaOps;
use super::products::{Operand, ProductBatch, ProductSizes};
use crate::device::memory::{ALIGNED, has_scores};
use crate::{Error, Result};

impl CudaOps {
    /// Softmax attention of one item's queries, which are some rows of `queries`, on its keys and values, into the same rows of `out`.
    pub(super) fn attend(
        &self,
        queries: &CudaMatrix,
        item: Range<usize>,
        [keys, values]: [&CudaMatrix; 2],
        heads: usize,
        out: &mut CudaMatrix,
    ) -> Result<()> {
        let (width, count) = (queries.columns(), keys.rows());
        if heads == 0 || !width.is_multiple_of(heads) || [keys, values].map(CudaMatrix::columns) != [width; 2]
        {
            return Err(Error::Argument(format!("{width} features are no {heads} heads")));
        }
        let head = width / heads;
        if has_scores(head, self.numbers.size()) {
            return self.attend_in_parts(queries, item, [keys, values], heads, out);
        }
        let attend = match (head, self.numbers) {
            (64, NumberType::F16) => CudaDriver::attend_64_f16,
            (64, _) => CudaDriver::attend_64_bf16,
            (_, NumberType::F16) => CudaDriver::attend_128_f16,
            (_, _) => CudaDriver::attend_128_bf16,
        };
        self.count(2 * item.len(), width, count);
        attend(
            self.device.driver(),
            Launch::attention(item.len(), heads, head),
            queries.input_from(item.start * width),
            keys.input(),
            values.input(),
            item.len(),
            count,
            width,
            LOG2_E / (head as f32).sqrt(),
            out.output_from(item.start * width)?,
        )?;
        Ok(())
    }

    /// The same, with as many queries at a time as may have their scores in memory.
    fn attend_in_parts(
        &self,
        queries: &CudaMatrix,
        item: Range<usize>,
        [keys, values]: [&CudaMatrix; 2],
        heads: usize,
        out: &mut CudaMatrix,
    ) -> Result<()> {
        let (width, count) = (queries.columns(), keys.rows());
        let (head, stride) = (width / heads, count.next_multiple_of(ALIGNED));
        let most = (self.scores / (heads * stride)).clamp(1, item.len().max(1));
        let (driver, products) = (self.device.driver(), self.device.products());
        let mut scores = CudaMatrix::new(&self.device, NumberType::F32, heads * most, stride)?;
        let mut shares = self.empty(heads * most, stride)?;
        for first in item.clone().step_by(most) {
            let rows = most.min(item.end - first);
            self.count(2 * rows, width, count);
            let product = ProductBatch {
                numbers: self.numbers,
                sizes: ProductSizes { rows, columns: count, inner: head, stride },
                left: features_of_head(queries, first, false),
                right: features_of_head(keys, 0, true),
                steps: [head, head, rows * stride],
                count: heads,
            };
            products.multiply_to_f32(product, scores.output()?)?;
            driver.softmax(
                self.numbers,
                Launch::row_sums(heads * rows),
                scores.input(),
                heads * rows,
                count,
                stride,
                1.0 / (head as f32).sqrt(),
                shares.output()?,
            )?;
            let product = ProductBatch {
                numbers: self.numbers,
                sizes: ProductSizes { rows, columns: head, inner: count, stride: width },
                left: Operand { values: shares.input(), stride, transposed: false },
                right: features_of_head(values, 0, false),
                steps: [rows * stride, head, head],
                count: heads,
            };
            products.multiply_numbers(product, out.output_from(first * width)?)?;
        }
        Ok(())
    }
}

/// The first head's features of a matrix whose heads lie side by side, from some row on.
fn features_of_head(matrix: &CudaMatrix, row: usize, transposed: bool) -> Operand<'_, u8> {
    let stride = matrix.columns();
    Operand { values: matrix.input_from(row * stride), stride, transposed }
}
