//! `obsdiff compare DENSE PRUNED`.

use std::path::{Path, PathBuf};

use obsdiff_engine::pipeline::Picture;

use super::pictures::{COLUMNS, argument_of_flag, check_out, decode, is_png, write_grid};
use super::speed;
use crate::cli::CompareArgs;
use crate::context::CommandContext;
use crate::picture::psnr;
use crate::sampling::{Sampling, load_transformer, open_pipeline, relative_errors};
use crate::text::Table;
use crate::{Error, Result};

/// Longer prompts are cut off in the table.
const PROMPT_CHARACTERS: usize = 60;

/// Compares a pruned pipeline with the dense one.
///
/// # Errors
/// When the prompts, a pipeline or the place to write to cannot be used, or the two transformers differ in shape.
pub(super) fn compare(args: &CompareArgs, context: &mut CommandContext<'_>) -> Result<()> {
    let process = &args.sampling.process;
    context.use_threads(process.threads)?;
    if !is_png(&args.out) {
        return Err(Error::content(&args.out, "is not a .png file: the grid is one picture"));
    }
    let inputs = [Some(&args.dense), Some(&args.pruned), args.sampling.file.as_ref()];
    let inputs: Vec<&Path> = inputs.into_iter().flatten().map(PathBuf::as_path).collect();
    let folder = check_out(&args.out, std::slice::from_ref(&args.out), &inputs)?;
    let prompts = args.sampling.read_prompts()?;
    let (dense, pruned) = (open_pipeline(&args.dense)?, open_pipeline(&args.pruned)?);
    if !dense.transformer_config().same_but_for_blocks(&**pruned.transformer_config()) {
        let problem =
            format!("is not the configuration of {}: the two cannot be compared", args.dense.display());
        return Err(Error::content(pruned.path().join("transformer/config.json"), problem));
    }
    let progress = context.progress(process.quiet);
    let sampling = Sampling::new(&dense, &prompts, args.sampling.settings(&dense), folder, &progress)
        .map_err(argument_of_flag)?;
    // The transformers are loaded one after the other, since both together would take twice the memory.
    let dense_latents = sampling.latents(&*load_transformer(&dense)?, "dense", &progress)?;
    let pruned_latents = sampling.latents(&*load_transformer(&pruned)?, "pruned", &progress)?;
    let errors = relative_errors(&dense_latents, &pruned_latents)?;
    let dense_pictures = decode(&dense, &dense_latents)?;
    let pruned_pictures = decode(&dense, &pruned_latents)?;
    let table = table(&prompts, &errors, &dense_pictures, &pruned_pictures);
    write_grid(&pairs(&dense_pictures, &pruned_pictures), &args.out)?;
    write!(context.out, "{table}")?;
    writeln!(context.out, "\n{}: rows by turns dense and pruned", args.out.display())?;
    if args.speed {
        let speed = speed::measure(&dense, &pruned, args.sampling.settings(&dense), context)?;
        writeln!(context.out, "{speed}")?;
    }
    Ok(())
}

/// The mean PSNR is of the pictures that differ: an equal pair's is infinite.
fn table(prompts: &[String], errors: &[f64], dense: &[Picture], pruned: &[Picture]) -> Table {
    let mut table = Table::new(["prompt", "latent error", "PSNR"]);
    let noise: Vec<f64> =
        dense.iter().zip(pruned).filter_map(|(dense, pruned)| psnr(dense, pruned)).collect();
    for ((prompt, error), noise) in prompts.iter().zip(errors).zip(&noise) {
        table.row([cut(prompt), format!("{error:.4}"), decibels(*noise)]);
    }
    table.rule();
    let finite: Vec<f64> = noise.into_iter().filter(|psnr| psnr.is_finite()).collect();
    let noise = if finite.is_empty() { f64::INFINITY } else { mean(&finite) };
    table.row(["mean".to_owned(), format!("{:.4}", mean(errors)), decibels(noise)]);
    table
}

fn cut(prompt: &str) -> String {
    match prompt.chars().count() {
        0..=PROMPT_CHARACTERS => prompt.to_owned(),
        _ => prompt.chars().take(PROMPT_CHARACTERS - 3).chain("...".chars()).collect(),
    }
}

fn decibels(psnr: f64) -> String {
    if psnr.is_finite() { format!("{psnr:.2} dB") } else { "equal".to_owned() }
}

fn mean(numbers: &[f64]) -> f64 {
    numbers.iter().sum::<f64>() / numbers.len() as f64
}

/// Rows of dense pictures, each above the pruned ones of the same prompts.
fn pairs(dense: &[Picture], pruned: &[Picture]) -> Vec<Vec<Picture>> {
    let rows = dense.chunks(COLUMNS).zip(pruned.chunks(COLUMNS));
    rows.flat_map(|(dense, pruned)| [dense.to_vec(), pruned.to_vec()]).collect()
}
