//! What a package's solving is taken to cost, which spreads units over packages and parts over workers.

use super::*;

#[test]
fn alternating_directions_cost_their_inverses_and_products() {
    let mut sparsity = spec().sparsity;
    assert_eq!(SolveCost::of(&sparsity), SolveCost::sweep(0));
    sparsity.method = Some(Method::Admm);
    let cost = |sparsity: &SparsitySpec| SolveCost::of(sparsity).of_rows(8, 5);
    // Inverses of 8^3; two operations for each of 14 products, and of two that measure the error.
    assert_eq!(cost(&sparsity), 8 * 8 * (3 * 8 + 5 * 2 * 16));
    sparsity.refine = 5;
    assert_eq!(cost(&sparsity), 8 * 8 * (3 * 8 + 5 * 2 * (16 + 6)));
    sparsity.effort = Effort::Thorough;
    assert_eq!(cost(&sparsity), 8 * 8 * (6 * 8 + 5 * 2 * (25 + 6)));
}
