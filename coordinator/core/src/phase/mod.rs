//! The phases of a package, each in its own file: how facts about it are taken in, and what is decided from them.

mod apply;
mod calibrate;
mod commit;
mod encode;
mod export;
mod pilot;
mod reduce;
mod solve;
