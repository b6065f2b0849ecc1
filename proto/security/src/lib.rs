//! Who may connect: mutual TLS, the rule for ports without it, and the job's token.
//!
//! Both sides show a certificate of the same authority, so that a coordinator serves no stranger and a worker obeys none. Without
//! certificates only loopback addresses are used, unless a user allows others. The token distinguishes jobs that share an authority.

mod error;
mod exposure;
mod tls;
mod token;

pub use error::{Result, SecurityError};
pub use exposure::{Exposure, check_bind, check_dial, is_this_machine};
pub use tls::{Tls, TlsFiles, https_client};
pub use token::{Token, TokenCheck, TokenSender};
