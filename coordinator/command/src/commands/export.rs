//! `obsdiff export DIR`.

use obsdiff_engine::export::write_single_file;
use obsdiff_proto::ByteSize;
use obsdiff_worker::stored_model::Extent;

use super::pictures::check_place;
use crate::cli::ExportArgs;
use crate::context::CommandContext;
use crate::sampling::open_pipeline;
use crate::{Error, Result};

/// The command's option that names the file.
const SINGLE_FILE: &str = "--single-file";

/// Writes a pipeline's transformer as one file.
///
/// # Errors
/// When the pipeline or the place cannot be used, or the transformer has no such layout; a file that cannot be written.
pub(super) fn export(args: &ExportArgs, context: &mut CommandContext<'_>) -> Result<()> {
    let file = &args.single_file;
    if file.extension().is_none_or(|extension| extension != "safetensors") {
        return Err(Error::content(
            file,
            "is not a .safetensors file, which is what is written: give it that ending",
        ));
    }
    check_place(file, SINGLE_FILE, &[&args.pipeline])?;
    if file.symlink_metadata().is_ok() {
        return Err(Error::content(
            file,
            format!("exists already: choose another {SINGLE_FILE}, or move it away"),
        ));
    }
    let pipeline = open_pipeline(&context.pipeline(&args.pipeline, Extent::TransformerWeights)?)?;
    let tensors = pipeline.transformer_config().single_file().map_err(|problem| {
        let config = pipeline.path().join("transformer/config.json");
        Error::content(config, format!("is of a transformer that cannot be one file: {problem}"))
    })?;
    let weights = pipeline.transformer_weights()?;
    let bytes = write_single_file(&weights, &tensors, file, &context.disk)?;
    Ok(writeln!(context.out, "{}: {} tensors, {}", file.display(), tensors.len(), ByteSize(bytes))?)
}
