//! How much each denoising step counts.

use obsdiff_proto::Weighting;

/// alpha_k for the denoising steps k = 0 (noisiest) .. `steps` - 1, between `low` and `high`.
///
/// Logarithmic: alpha_k = low + (high - low) / ln T * ln(T - k) falls from high to low (OBS-Diff, arXiv 2510.06751); linear falls
/// evenly; the increasing ones are the same reversed. A single step gets `high`, uniform steps get 1.
pub fn alphas(weighting: Weighting, steps: u32, low: f64, high: f64) -> Vec<f64> {
    let last = f64::from(steps.max(2) - 1);
    let linear = |k: u32| high - (high - low) * f64::from(k) / last;
    let log = |k: u32| low + (high - low) / f64::from(steps).ln() * f64::from(steps - k).ln();
    let alpha = |k: u32| match weighting {
        Weighting::Uniform => 1.0,
        _ if steps == 1 => high,
        Weighting::LinearDecrease => linear(k),
        Weighting::LinearIncrease => linear(steps - 1 - k),
        Weighting::LogDecrease => log(k),
        Weighting::LogIncrease => log(steps - 1 - k),
    };
    (0..steps).map(alpha).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(a: &[f64], b: &[f64]) -> bool {
        a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-12)
    }

    #[test]
    fn every_weighting_runs_between_its_bounds() {
        let of = |w, steps| alphas(w, steps, 0.8, 1.2);
        assert!(close(&of(Weighting::Uniform, 3), &[1.0; 3]));
        assert!(close(&of(Weighting::LinearDecrease, 3), &[1.2, 1.0, 0.8]));
        assert!(close(&of(Weighting::LinearIncrease, 5), &[0.8, 0.9, 1.0, 1.1, 1.2]));
        assert!(close(&of(Weighting::LogDecrease, 4), &[1.2, 0.8 + 0.4 * 3f64.ln() / 4f64.ln(), 1.0, 0.8]));
        let reversed: Vec<f64> = of(Weighting::LogDecrease, 7).into_iter().rev().collect();
        assert!(close(&of(Weighting::LogIncrease, 7), &reversed));
    }

    #[test]
    fn a_single_step_gets_the_high_weight() {
        for weighting in [
            Weighting::LinearDecrease,
            Weighting::LinearIncrease,
            Weighting::LogDecrease,
            Weighting::LogIncrease,
        ] {
            assert_eq!(alphas(weighting, 1, 0.8, 1.2), [1.2]);
        }
        assert_eq!(alphas(Weighting::Uniform, 1, 0.8, 1.2), [1.0]);
    }
}
