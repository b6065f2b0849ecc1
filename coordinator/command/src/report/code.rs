//! How a pruned pipeline is loaded, as code.

use super::{Loading, given_as_none};

/// A string as Python writes it. JSON's escapes are a part of Python's.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// Python that loads the pipeline in diffusers and makes a picture.
pub(super) fn diffusers(loading: &Loading) -> String {
    let Loading { path, url, pipeline_class, module, absent_text } = loading;
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
    let without = given_as_none(absent_text);
    let from = url.as_ref().map_or(String::new(), |url| {
        // Names from outside must not end the comment.
        format!("# {} is a folder that holds what lies at {}.\n", path.escape_debug(), url.escape_debug())
    });
    format!(
        "{from}{load}pipeline = {pipeline_class}.from_pretrained({folder}{given}{without}, torch_dtype=torch.bfloat16)\n\
         pipeline.to(\"cuda\")\npipeline(\"a red circle on white\").images[0].save(\"picture.png\")\n"
    )
}

/// Python that turns 2:4 weights of a loaded `pipeline` into PyTorch's semi-structured form, which GPUs since Ampere multiply faster, and
/// that says so where PyTorch or the GPU lacks it. The sizes are those that its CUTLASS kernels take of 16-bit numbers.
pub(super) const SEMI_STRUCTURED: &str = "\
to_sparse = getattr(torch.sparse, \"to_sparse_semi_structured\", None)
if to_sparse is None:
    print(f\"PyTorch {torch.__version__} has no 2:4 kernels, 2.1 and later have: the weights stay as they are\")
elif not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 0):
    print(\"only NVIDIA GPUs since Ampere have 2:4 kernels: the weights stay as they are\")
else:
    for module in pipeline.transformer.modules():
        if isinstance(module, torch.nn.Linear) and module.in_features % 64 == 0 and module.out_features % 32 == 0:
            weight = module.weight.data
            if (weight.reshape(-1, 4) != 0).sum(dim=1).max() <= 2:
                module.weight = torch.nn.Parameter(to_sparse(weight))
";

/// The command by which TensorRT picks its kernels for 2:4 weights.
pub(super) const TENSORRT: &str = "trtexec --onnx=transformer.onnx --fp16 --sparsity=enable";

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_smaller_transformer_is_loaded_by_its_own_module() {
        let mut loading = Loading {
            path: "it's \"out\"".to_owned(),
            url: None,
            pipeline_class: "StableDiffusion3Pipeline".to_owned(),
            module: None,
            absent_text: Vec::new(),
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

    #[test]
    fn diffusers_is_told_of_text_encoders_that_a_pipeline_does_without() {
        let mut loading = Loading {
            path: "out".to_owned(),
            url: None,
            pipeline_class: "StableDiffusion3Pipeline".to_owned(),
            module: None,
            absent_text: vec!["text_encoder_3", "tokenizer_3"],
        };
        let none = "text_encoder_3=None, tokenizer_3=None, torch_dtype=torch.bfloat16)";
        let code = diffusers(&loading);
        assert!(code.contains(&format!("from_pretrained(\"out\", {none}")), "{code}");
        loading.module = Some("modeling_pruned_sd3".to_owned());
        let code = diffusers(&loading);
        assert!(
            code.contains(&format!("from_pretrained(\"out\", transformer=transformer, {none}")),
            "{code}"
        );
    }

    /// Stands in for PyTorch and a pipeline: three linears of which the first alone is 2:4 and has a size that kernels take.
    const STAND_IN: &str = r#"
import types

class Weight:
    def __init__(self, most):
        self.data, self.most = self, most
    def reshape(self, *shape):
        return self
    def __ne__(self, other):
        return self
    def sum(self, dim):
        return self
    def max(self):
        return self.most

class Linear:
    def __init__(self, rows, columns, most):
        self.out_features, self.in_features, self.weight = rows, columns, Weight(most)

torch = types.SimpleNamespace(__version__="2.0.1", sparse=types.SimpleNamespace())
torch.nn = types.SimpleNamespace(Linear=Linear, Parameter=lambda weight: weight)
torch.cuda = types.SimpleNamespace(is_available=lambda: CAPABILITY is not None, get_device_capability=lambda: CAPABILITY)
if KERNELS:
    torch.sparse.to_sparse_semi_structured = lambda weight: "sparse"
linears = [Linear(64, 64, 2), Linear(64, 64, 3), Linear(48, 64, 2)]
pipeline = types.SimpleNamespace(transformer=types.SimpleNamespace(modules=lambda: linears))
"#;

    /// What the lines for 2:4 weights print, and how many of the stand-in's linears become sparse. No Python package is needed.
    fn made_sparse(kernels: &str, capability: &str) -> Option<(String, u32)> {
        let code = format!(
            "KERNELS, CAPABILITY = {kernels}, {capability}\n{STAND_IN}{SEMI_STRUCTURED}\n\
             print([linear.weight for linear in linears].count(\"sparse\"))"
        );
        let Ok(output) = Command::new("python3").args(["-c", &code]).output() else {
            obsdiff_tests::not_tested("the lines of a card run by python3, which is not installed");
            return None;
        };
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).unwrap();
        let (said, count) = text.trim_end().rsplit_once('\n').unwrap_or(("", text.trim_end()));
        Some((said.to_owned(), count.parse().unwrap()))
    }

    #[test]
    fn two_to_four_weights_become_sparse_where_that_is_possible_and_elsewhere_it_is_told_why_not() {
        let Some(ampere) = made_sparse("True", "(8, 0)") else { return };
        assert_eq!(ampere, (String::new(), 1));
        for (kernels, capability, says) in [
            (
                "False",
                "(8, 0)",
                "PyTorch 2.0.1 has no 2:4 kernels, 2.1 and later have: the weights stay as they are",
            ),
            (
                "True",
                "(7, 5)",
                "only NVIDIA GPUs since Ampere have 2:4 kernels: the weights stay as they are",
            ),
            ("True", "None", "only NVIDIA GPUs since Ampere have 2:4 kernels: the weights stay as they are"),
        ] {
            assert_eq!(
                made_sparse(kernels, capability),
                Some((says.to_owned(), 0)),
                "{kernels}, {capability}"
            );
        }
    }
}
