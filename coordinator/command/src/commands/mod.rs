//! What each command does.

mod compare;
mod coordinator;
mod counts;
mod inspect;
mod models;
mod pictures;
mod plan;
mod plan_sizes;
mod run;
mod sample;
mod speed;
mod status;
mod worker;

use crate::Result;
use crate::cli::CliCommand;
use crate::context::CommandContext;

/// Runs a command.
///
/// # Errors
/// What the command cannot use, or what failed.
pub fn run(command: &CliCommand, session: &mut CommandContext<'_>) -> Result<()> {
    match command {
        CliCommand::Run(args) => run::run(args, session),
        CliCommand::Coordinator(args) => coordinator::coordinate(args, session),
        CliCommand::Worker(args) => worker::work(args, session),
        CliCommand::Status(args) => status::status(args, session),
        CliCommand::Plan(args) => plan::plan(args, session),
        CliCommand::Inspect(args) => inspect::inspect(args, session),
        CliCommand::Models => models::models(session),
        CliCommand::Sample(args) => sample::sample(args, session),
        CliCommand::Compare(args) => compare::compare(args, session),
    }
}
