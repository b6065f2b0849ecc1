//! `obsdiff completions SHELL` and `obsdiff man DIR`: what shells and `man` know of the command line.

use std::fs;

use clap::CommandFactory;

use crate::cli::{Cli, CompletionsArgs, ManArgs};
use crate::context::CommandContext;
use crate::{Error, Result};

/// Prints a script by which a shell completes commands and options.
///
/// # Errors
/// When standard output is closed.
pub(super) fn completions(args: &CompletionsArgs, context: &mut CommandContext<'_>) -> Result<()> {
    // The generator cannot say that a write failed.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "obsdiff", &mut script);
    Ok(context.out.write_all(&script)?)
}

/// Writes a manual page for the program and one for each command.
///
/// # Errors
/// When a page cannot be written.
pub(super) fn man(args: &ManArgs, context: &mut CommandContext<'_>) -> Result<()> {
    fs::create_dir_all(&args.folder).map_err(|e| Error::file(&args.folder, e))?;
    clap_mangen::generate_to(Cli::command(), &args.folder).map_err(|e| Error::file(&args.folder, e))?;
    Ok(writeln!(
        context.out,
        "{}: man -l {}",
        args.folder.display(),
        args.folder.join("obsdiff.1").display()
    )?)
}
