//! What each command does.

mod cache;
mod compare;
mod comparison;
mod coordinator;
mod counts;
mod device_memory;
mod encode;
mod export;
mod init;
mod inspect;
mod models;
mod pictures;
mod plan;
mod plan_report;
mod plan_sizes;
mod plan_times;
mod request;
mod run;
mod sample;
mod selftest;
mod shell;
mod speed;
mod status;
mod sweep;
mod whole_model;
mod worker;

use crate::Result;
use crate::cli::CliCommand;
use crate::context::CommandContext;

/// Runs a command.
///
/// # Errors
/// What the command cannot use, or what failed.
pub fn run(command: &CliCommand, context: &mut CommandContext<'_>) -> Result<()> {
    match command {
        CliCommand::Run(args) => run::run(args, context),
        CliCommand::Solve(args) => run::solve(args, context),
        CliCommand::Sweep(args) => sweep::sweep(args, context),
        CliCommand::Coordinator(args) => coordinator::coordinate(args, context),
        CliCommand::Worker(args) => worker::work(args, context),
        CliCommand::Status(args) => status::status(args, context),
        CliCommand::Plan(args) => plan::plan(args, context),
        CliCommand::Encode(args) => encode::encode(args, context),
        CliCommand::Export(args) => export::export(args, context),
        CliCommand::Inspect(args) => inspect::inspect(args, context),
        CliCommand::Init(args) => init::init(args, context),
        CliCommand::Completions(args) => shell::completions(args, context),
        CliCommand::Man(args) => shell::man(args, context),
        CliCommand::Models => models::models(context),
        CliCommand::Cache(args) => cache::cache(args, context),
        CliCommand::Selftest(args) => selftest::selftest(args, context),
        CliCommand::Sample(args) => sample::sample(args, context),
        CliCommand::Compare(args) => compare::compare(args, context),
    }
}
