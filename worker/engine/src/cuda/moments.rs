//! The second moments that heads and neurons are solved by, as whole squares of f64 on a GPU: [`Moments`](crate::solve::structured::Moments),
//! whose numbers these are, made of packed sums where they lie.

use std::sync::Arc;

use obsdiff_proto::Accumulate;

use super::driver::{DeviceBuffer, In};
use super::kernels::Launch;
use super::sums::CudaGram;
use super::{CudaDevice, CudaError, CudaStructured};
use crate::device::transfers::TransferKind;
use crate::gram::GramError;
use crate::solve::structured::is_constant;
use crate::solve::{SolveError, check_size};

/// The second moments of a site's activations, of which a GPU has the sums. Only their diagonal and the means came to the host.
#[derive(Debug)]
pub struct CudaMoments {
    gram: Arc<CudaGram>,
    /// What a sum times its value in the mean is multiplied by.
    scale: f64,
    means: Vec<f64>,
    diagonal: Vec<f64>,
}

impl CudaMoments {
    /// From a Gram of n features and the constant 1 behind them.
    pub(crate) fn new(gram: &Arc<CudaGram>) -> Result<Self, GramError> {
        let (mut diagonal, mut last) = (gram.diagonal_sums()?, gram.last_column()?);
        let unit = gram.value_of_entry();
        diagonal.pop();
        let mass = last.pop().unwrap_or(0.0) * unit;
        let scale = if mass > 0.0 { 1.0 / mass } else { 1.0 };
        let mean = |sum: f64| if mass > 0.0 { sum * unit / mass } else { 0.0 };
        let means = last.into_iter().map(mean).collect();
        diagonal.iter_mut().for_each(|sum| *sum = *sum * unit * scale);
        Ok(Self { gram: Arc::clone(gram), scale, means, diagonal })
    }

    /// The mean of each feature.
    pub(crate) fn means(&self) -> &[f64] {
        &self.means
    }

    /// A linear of this weight (rows x n, row-major) of which columns are to go, by S or by S about the means.
    pub(crate) fn linear(
        &self,
        weight: &[f64],
        about_means: bool,
        damping: f64,
    ) -> Result<CudaStructured, SolveError> {
        let (device, square) = (Arc::clone(self.gram.device()), self.square(about_means));
        CudaStructured::new(device, self.means.len(), weight, square, damping)
    }

    /// tr(V S V^T) for V = `weight` (rows x n, row-major).
    pub(crate) fn output_energy(&self, weight: &[f64], about_means: bool) -> Result<f64, SolveError> {
        let n = self.means.len();
        check_size(weight.len(), n)?;
        Ok(CudaStructured::output_energy(self.gram.device(), weight, self.square(about_means), n)?)
    }

    /// S, or S about the means.
    const fn square(&self, about_means: bool) -> SymmetricSquare<'_> {
        SymmetricSquare::Sums { of: self, about_means }
    }

    /// S_jj about the mean, for every column j.
    fn centred_diagonal(&self) -> impl Iterator<Item = f64> {
        self.diagonal.iter().zip(&self.means).map(|(x, mean)| {
            let centred = x - mean * mean;
            if is_constant(centred, *x) { 0.0 } else { centred }
        })
    }
}

/// A symmetric S (n x n) that a linear is solved by.
#[derive(Clone, Copy, Debug)]
pub(crate) enum SymmetricSquare<'a> {
    /// Of the host, row-major.
    Host(&'a [f64]),
    /// Of sums in the GPU's memory.
    Sums { of: &'a CudaMoments, about_means: bool },
}

impl SymmetricSquare<'_> {
    /// Whether it has so many rows and columns; how many values it has.
    pub(super) fn is_of(&self, n: usize) -> Result<(), usize> {
        let values = match self {
            Self::Host(values) => values.len(),
            Self::Sums { of, .. } => of.means.len().pow(2),
        };
        if values == n * n { Ok(()) } else { Err(values) }
    }

    /// S_jj of every column j, of n.
    pub(super) fn diagonal(&self, n: usize) -> Vec<f64> {
        match self {
            Self::Host(values) => (0..n).map(|j| values[j * (n + 1)]).collect(),
            Self::Sums { of, about_means: true } => of.centred_diagonal().collect(),
            Self::Sums { of, about_means: false } => of.diagonal.clone(),
        }
    }

    /// It, whole, in memory of its own.
    pub(super) fn on(&self, device: &CudaDevice) -> Result<DeviceBuffer<f64>, CudaError> {
        let driver = device.driver();
        let (of, about_means) = match *self {
            Self::Host(values) => return driver.upload(TransferKind::Grams, values),
            Self::Sums { of, about_means } => (of, about_means),
        };
        let n = of.means.len();
        let mut square = driver.buffer::<f64>(n * n)?;
        let (mut means, mut constant) = (None, None);
        if about_means {
            let flags: Vec<u8> = of.centred_diagonal().map(|x| u8::from(x == 0.0)).collect();
            means = Some(driver.upload(TransferKind::Figures, &of.means)?);
            constant = Some(driver.upload(TransferKind::Figures, &flags)?);
        }
        let (unit, scale, numbers) = (of.gram.value_of_entry(), of.scale, of.gram.numbers());
        let means = means.as_ref().map_or(In::none(), DeviceBuffer::input);
        let constant = constant.as_ref().map_or(In::none(), DeviceBuffer::input);
        let (launch, to) = (Launch::matrix(n, n), square.output());
        match numbers.accumulates() {
            Accumulate::Exact => {
                driver.unpack_moments_exact(launch, In::of(&numbers), n, unit, scale, means, constant, to)?
            }
            Accumulate::F32 => {
                driver.unpack_moments_f32(launch, In::of(&numbers), n, unit, scale, means, constant, to)?;
            }
        }
        Ok(square)
    }
}
