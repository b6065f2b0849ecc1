//! Whole-system tests of obsdiff live in `tests/`.
