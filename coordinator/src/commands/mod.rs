//! What each command does.

mod inspect;

use crate::Result;
use crate::cli::Command;
use crate::session::Session;

/// Runs a command.
///
/// # Errors
/// What the command cannot use, or what failed.
pub fn run(command: &Command, session: &mut Session<'_>) -> Result<()> {
    match command {
        Command::Inspect(args) => inspect::inspect(args, session),
    }
}
