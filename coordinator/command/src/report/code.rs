//! How a pruned pipeline is loaded, as code.

use super::Loading;

/// A string as Python writes it. JSON's escapes are a part of Python's.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// Python that loads the pipeline in diffusers and makes a picture.
pub(super) fn diffusers(loading: &Loading) -> String {
    let Loading { path, url, pipeline_class, module } = loading;
    let folder = quoted(path);
    let (load, given) = match module {
        Some(module) => {
            let transformer = quoted(&format!("{path}/transformer"));
            let load = format!(
                "import sys\n\nimport torch\nfrom diffusers import {pipeline_class}\n\n\
                 # What blocks have kept is known to a module beside the weights, which needs diffusers 0.32.0 or later.\nsys.path.insert(0, {transformer})\n\
                 from {module} import load_pruned_transformer\n\n\
                 transformer = load_pruned_transformer(torch_dtype=torch.bfloat16)\n"
            );
            (load, ", transformer=transformer")
        }
        None => (format!("import torch\nfrom diffusers import {pipeline_class}\n\n"), ""),
    };
    let from = url.as_ref().map_or(String::new(), |url| {
        // Names from outside must not end the comment.
        format!("# {} is a folder that holds what lies at {}.\n", path.escape_debug(), url.escape_debug())
    });
    format!(
        "{from}{load}pipeline = {pipeline_class}.from_pretrained({folder}{given}, torch_dtype=torch.bfloat16)\n\
         pipeline.to(\"cuda\")\npipeline(\"a red circle on white\").images[0].save(\"picture.png\")\n"
    )
}

/// Python that turns 2:4 weights of a loaded `pipeline` into PyTorch's semi-structured form, which GPUs since Ampere multiply faster. The
/// sizes are those that its CUTLASS kernels take of 16-bit numbers.
pub(super) const SEMI_STRUCTURED: &str = "\
from torch.sparse import to_sparse_semi_structured

for module in pipeline.transformer.modules():
    if isinstance(module, torch.nn.Linear) and module.in_features % 64 == 0 and module.out_features % 32 == 0:
        weight = module.weight.data
        if (weight.reshape(-1, 4) != 0).sum(dim=1).max() <= 2:
            module.weight = torch.nn.Parameter(to_sparse_semi_structured(weight))
";

/// The command by which TensorRT picks its kernels for 2:4 weights.
pub(super) const TENSORRT: &str = "trtexec --onnx=transformer.onnx --fp16 --sparsity=enable";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_smaller_transformer_is_loaded_by_its_own_module() {
        let mut loading = Loading {
            path: "it's \"out\"".to_owned(),
            url: None,
            pipeline_class: "StableDiffusion3Pipeline".to_owned(),
            module: None,
        };
        let code = diffusers(&loading);
        assert!(code.contains(r#".from_pretrained("it's \"out\"", torch_dtype"#), "{code}");
        loading.module = Some("modeling_pruned_sd3".to_owned());
        let code = diffusers(&loading);
        assert!(code.contains("from modeling_pruned_sd3 import load_pruned_transformer"), "{code}");
        assert!(code.contains(r#"from_pretrained("it's \"out\"", transformer=transformer, "#), "{code}");
        assert!(code.starts_with("import sys\n"), "{code}");
        loading.url = Some("s3://bucket/some/out\nexit()".to_owned());
        let code = diffusers(&loading);
        let first = "# it\\'s \\\"out\\\" is a folder that holds what lies at s3://bucket/some/out\\nexit().\nimport sys\n";
        assert!(code.starts_with(first), "{code}");
    }
}
