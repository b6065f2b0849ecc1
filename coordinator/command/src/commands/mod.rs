//! What each command does.

mod compare;
mod coordinator;
mod counts;
mod inspect;
mod models;
mod pictures;
mod plan;
mod run;
mod sample;
mod speed;
mod status;
mod worker;

use crate::Result;
use crate::cli::Command;
use crate::session::Session;

/// Runs a command.
///
/// # Errors
/// What the command cannot use, or what failed.
pub fn run(command: &Command, session: &mut Session<'_>) -> Result<()> {
    match command {
        Command::Run(args) => run::run(args, session),
        Command::Coordinator(args) => coordinator::coordinate(args, session),
        Command::Worker(args) => worker::work(args, session),
        Command::Status(args) => status::status(args, session),
        Command::Plan(args) => plan::plan(args, session),
        Command::Inspect(args) => inspect::inspect(args, session),
        Command::Models => models::models(session),
        Command::Sample(args) => sample::sample(args, session),
        Command::Compare(args) => compare::compare(args, session),
    }
}
