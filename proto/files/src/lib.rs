//! Files that a user names: how they are opened.

mod open;

pub use open::{open_regular, read_regular};
