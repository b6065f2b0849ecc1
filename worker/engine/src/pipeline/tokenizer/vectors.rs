//! Textual inversions of several vectors: a token `<x>` whose further vectors are the tokens `<x>_1`, `<x>_2` and so on.

use std::collections::{BTreeMap, BTreeSet};

use tokenizers::Tokenizer;

use super::MAX_PROMPT_BYTES;

/// The tokens of a tokenizer that stand for several, and those that they stand for.
#[derive(Debug, Default)]
pub(super) struct FurtherVectors(BTreeMap<String, String>);

impl FurtherVectors {
    /// Those among the tokens beside a vocabulary.
    pub(super) fn of(tokenizer: &Tokenizer) -> Self {
        let added = tokenizer.get_added_tokens_decoder();
        let names: BTreeSet<&str> = added.values().map(|token| token.content.as_str()).collect();
        let all = |name: &&str| {
            let further = (1..).map(|number| format!("{name}_{number}"));
            let further: Vec<String> = further.take_while(|name| names.contains(&**name)).collect();
            (!further.is_empty()).then(|| ((*name).to_owned(), format!("{name} {}", further.join(" "))))
        };
        Self(names.iter().filter_map(all).collect())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The prompt with all vectors of the tokens that were found in it, as diffusers' `maybe_convert_prompt` writes it: in place of each
    /// occurrence of a token's text.
    ///
    /// # Errors
    /// Its size in bytes, when that is more than a prompt may have.
    pub(super) fn written_out(&self, prompt: &str, found: &[String]) -> Result<String, usize> {
        let mut prompt = prompt.to_owned();
        for (token, all) in self.0.iter().filter(|(token, _)| found.contains(token)) {
            let bytes = prompt.len() + prompt.matches(token).count() * (all.len() - token.len());
            if bytes > MAX_PROMPT_BYTES {
                return Err(bytes);
            }
            prompt = prompt.replace(token, all);
        }
        Ok(prompt)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::PromptTokenizer;
    use crate::pipeline::PipelineFolder;
    use crate::pipeline::testing::{asset, copy_folder, edit_json};

    const LENGTH: usize = 24;

    /// A tokenizer with tokens of these ids beside its vocabulary.
    fn with_tokens(component: &str, tokens: &[(u32, &str)]) -> tempfile::TempDir {
        let folder = copy_folder(component);
        edit_json(&folder.path().join("tokenizer_config.json"), |config| {
            for (id, token) in tokens {
                config["added_tokens_decoder"][id.to_string()] =
                    json!({ "content": token, "normalized": true });
            }
        });
        folder
    }

    fn assert_ids(tokenizer: &PromptTokenizer, prompt: &str, expected: &[u32]) {
        let mut expected = expected.to_vec();
        expected.resize(LENGTH, *expected.last().unwrap());
        assert_eq!(tokenizer.encode(prompt).unwrap(), expected, "{prompt:?}");
    }

    /// Ids that transformers 5.24.0 gives for what diffusers 0.42.1 makes of each prompt, and for the prompt itself.
    #[test]
    fn a_token_is_read_as_all_of_its_vectors_where_the_pipeline_does_so() {
        let folder = with_tokens("tokenizer", &[(581, "<sks>"), (582, "<sks>_1"), (583, "<other>_1")]);
        let plain = PromptTokenizer::clip(folder.path(), LENGTH).unwrap();
        assert_ids(&plain, "a <sks> ring", &[579, 320, 581, 543, 580]);
        let tokenizer = plain.with_further_vectors();
        assert_ids(&tokenizer, "a <sks> ring", &[579, 320, 581, 582, 543, 580]);
        // diffusers looks for the token's own letters.
        assert_ids(&tokenizer, "A <SKS> ring", &[579, 320, 581, 543, 580]);
        assert_ids(&tokenizer, "a <sks>_1 ring", &[579, 320, 582, 543, 580]);
        assert_ids(&tokenizer, "<sks> <sks>_1", &[579, 581, 582, 581, 582, 318, 272, 580]);
        assert_ids(&tokenizer, "a<sks>b <sks>!", &[579, 320, 581, 582, 321, 581, 582, 256, 580]);
        let long = [&[579][..], &[543; 22], &[580]].concat();
        assert_ids(&tokenizer, &format!("{}<sks>", "ring ".repeat(30)), &long);
        let error = tokenizer.encode(&"<sks>".repeat(13_000)).unwrap_err().to_string();
        assert!(
            error.contains("has 169000 bytes with all vectors of its tokens: at most 65536 are read"),
            "{error}"
        );
    }

    /// Ids that tokenizers 0.23 gives for `tokenizer.json`.
    #[test]
    fn t5_reads_all_vectors_too() {
        let folder = with_tokens("tokenizer_3", &[(95, "<sks>"), (96, "<sks>_1")]);
        let tokenizer = PromptTokenizer::t5(folder.path(), LENGTH).unwrap().with_further_vectors();
        assert_ids(&tokenizer, "a<sks>b", &[5, 95, 3, 96, 3, 28, 1, 0]);
    }

    /// FLUX's pipeline in diffusers writes the vectors out, that of SD3 does not.
    #[test]
    fn the_pipeline_decides() {
        for (pipeline, expected) in [("", &[579, 581, 580][..]), ("../shapes-flux", &[579, 581, 582, 580])] {
            let copy = tempfile::tempdir().unwrap();
            obsdiff_tests::copy_folder(&asset(pipeline), copy.path());
            edit_json(&copy.path().join("tokenizer/tokenizer_config.json"), |config| {
                for (id, token) in [(581, "<sks>"), (582, "<sks>_1")] {
                    config["added_tokens_decoder"][id.to_string()] = json!({ "content": token });
                }
            });
            let encoders = PipelineFolder::open(copy.path()).unwrap().text_encoders(LENGTH).unwrap();
            let ids = encoders.token_ids("<sks>").unwrap().remove(0);
            assert_eq!(ids[..expected.len()], *expected, "{pipeline}");
        }
    }
}
