//! Grams: exact weighted sums of X^T X.
