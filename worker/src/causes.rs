//! Errors in words.

use std::error::Error;

/// An error and its causes in one line. A cause that an error has already told is not told again.
pub(crate) fn causes(error: &dyn Error) -> String {
    let mut words = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        if !words.contains(&said) {
            words = format!("{words}: {said}");
        }
        cause = error.source();
    }
    words
}
