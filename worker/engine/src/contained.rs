//! Calls into other libraries that may panic on files that nobody has checked.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

thread_local! {
    static CONTAINED: Cell<bool> = const { Cell::new(false) };
}

/// Runs a part of another library; `None` where it panics.
pub(crate) fn contained<T>(part: impl FnOnce() -> T) -> Option<T> {
    let outer = CONTAINED.replace(true);
    let result = catch_unwind(AssertUnwindSafe(part));
    CONTAINED.set(outer);
    result.ok()
}

/// Whether a panic of this thread is caught, and becomes an error about a file: a panic hook has nothing to print.
pub fn is_contained() -> bool {
    CONTAINED.get()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_contained_only_inside() {
        assert!(!is_contained());
        assert_eq!(contained(is_contained), Some(true));
        assert_eq!(contained(|| -> u8 { panic!("a damaged file") }), None);
        assert!(!is_contained());
        // An inner one does not end the outer one.
        assert_eq!(contained(|| contained(|| ()).map(|()| is_contained())), Some(Some(true)));
    }
}
