use std::fs;

use serde_json::json;

use super::super::PromptTokenizer;
use super::*;
use crate::pipeline::testing::{asset, copy_folder, edit_json};

const LENGTH: usize = 24;

/// What the table of T5 puts in the place of one letter, U+FDFA: no other text in it is as long.
const LONGEST: &str = "صلى الله عليه وسلم";

/// The shipped T5 tokenizer with another `tokenizer.json`.
fn t5(edit: impl FnOnce(&mut Value)) -> Result<PromptTokenizer> {
    let folder = copy_folder("tokenizer_3");
    edit_json(&folder.path().join("tokenizer.json"), edit);
    PromptTokenizer::t5(folder.path(), LENGTH)
}

/// The base64 of a table that has this text, and puts it in the place of a byte where one is given.
fn charsmap(replaced: Option<u8>, text: &str) -> String {
    let mut units = vec![0_u32; 512];
    if let Some(byte) = replaced {
        // The byte, that it ends what is replaced, and the way to the unit that says where the text begins: at 0.
        let byte = u32::from(byte);
        units[byte as usize] = byte | (1 << 8) | ((byte ^ 256) << 10);
    }
    let units: Vec<u8> = units.into_iter().flat_map(u32::to_le_bytes).collect();
    let table = [&(units.len() as u32).to_le_bytes()[..], &units, text.as_bytes(), &[0_u8]].concat();
    let step = serde_json::to_value(Precompiled::from(&table).unwrap()).unwrap();
    step["precompiled_charsmap"].as_str().unwrap().to_owned()
}

fn table(replaced: Option<u8>, text: &str) -> Value {
    json!({ "type": "Precompiled", "precompiled_charsmap": charsmap(replaced, text) })
}

fn normalizers(steps: impl IntoIterator<Item = Value>) -> Value {
    json!({ "type": "Sequence", "normalizers": steps.into_iter().collect::<Vec<_>>() })
}

fn pre_tokenizers(steps: impl IntoIterator<Item = Value>) -> Value {
    json!({ "type": "Sequence", "pretokenizers": steps.into_iter().collect::<Vec<_>>() })
}

/// Makes two letters of one.
fn doubling() -> Value {
    json!({ "type": "Replace", "pattern": { "String": "a" }, "content": "aa" })
}

#[test]
fn a_table_of_replacements_grows_by_its_longest_text_for_the_shortest_that_it_may_replace() {
    let growth = |replaced, text: &str| charsmap_growth(&charsmap(replaced, text));
    // Three bytes are replaced, or none.
    assert_eq!((LONGEST.len(), growth(None, LONGEST)), (33, Some(11)));
    assert_eq!(growth(None, ""), Some(1));
    assert_eq!(growth(Some(b'a'), LONGEST), Some(33));
    // "é" begins with this byte.
    assert_eq!(growth(Some(0xc3), LONGEST), Some(17));
    assert_eq!(growth(Some(0xe2), LONGEST), Some(11));
    for damaged in ["", "AAAA", "?", "AAAAQAAAAAA="] {
        assert_eq!(charsmap_growth(damaged), None, "{damaged}");
    }
}

/// The forms that transformers 4 and 5 write; the tests of CLIP save and read its own.
#[test]
fn the_steps_of_a_t5_tokenizer_are_accepted_in_each_form_that_they_have_had() {
    PromptTokenizer::t5(&asset("../shapes-flux/tokenizer_2"), LENGTH).unwrap();
    let prompt = "a red circle";
    let expected = PromptTokenizer::t5(&asset("tokenizer_3"), LENGTH).unwrap().encode(prompt).unwrap();
    let strip = json!({ "type": "Strip", "strip_left": false, "strip_right": true });
    let spaces = json!({ "type": "Replace", "pattern": { "Regex": " {2,}" }, "content": "▁" });
    let metaspace =
        json!({ "type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true });
    let first_metaspace =
        json!({ "type": "Metaspace", "replacement": "▁", "str_rep": "▁", "add_prefix_space": true });
    let words = json!({ "type": "WhitespaceSplit" });
    let white = |sign: &str| json!({ "type": "Replace", "pattern": { "String": sign }, "content": " " });
    let prepend = json!({ "type": "Prepend", "prepend": "▁" });
    let each_space = json!({ "type": "Replace", "pattern": { "String": " " }, "content": "▁" });
    let cases = [
        (normalizers([table(None, LONGEST), strip.clone(), spaces.clone()]), metaspace.clone()),
        (normalizers([strip.clone(), spaces.clone()]), metaspace.clone()),
        (table(None, LONGEST), pre_tokenizers([words.clone(), first_metaspace])),
        (Value::Null, pre_tokenizers([words, metaspace.clone()])),
        (normalizers([white("\n"), white("\r"), white("\t"), strip, spaces]), metaspace),
        (normalizers([table(None, LONGEST), prepend, each_space]), Value::Null),
    ];
    for (normalizer, pre_tokenizer) in cases {
        let tokenizer = t5(|file| {
            file["normalizer"] = normalizer.clone();
            file["pre_tokenizer"] = pre_tokenizer;
        });
        assert_eq!(tokenizer.unwrap().encode(prompt).unwrap(), expected, "{normalizer}");
    }
}

/// What is done to a `tokenizer.json`, and what the error must say.
type Case = (fn(&mut Value), &'static str);

#[test]
fn what_could_fill_the_memory_with_one_prompt_is_refused_by_its_key() {
    let cases: &[Case] = &[
        (
            |file| file["normalizer"] = normalizers(vec![doubling(); 26]),
            "`normalizer.normalizers[8]` and the steps before it can make a prompt 512 times as long",
        ),
        (
            |file| file["normalizer"] = normalizers([doubling(), normalizers(vec![doubling(); 8])]),
            "`normalizer.normalizers[1].normalizers[7]` and the steps before it can make a prompt 512 times",
        ),
        (
            |file| file["normalizer"] = json!({ "type": "Prepend", "prepend": "a".repeat(300) }),
            "`normalizer` and the steps before it can make a prompt 301 times as long",
        ),
        (
            |file| {
                file["normalizer"] =
                    json!({ "type": "Replace", "pattern": { "Regex": "" }, "content": "a".repeat(300) });
            },
            "`normalizer` and the steps before it can make a prompt 301 times as long",
        ),
        (
            |file| file["normalizer"] = table(Some(b'a'), &"a".repeat(300)),
            "`normalizer` and the steps before it can make a prompt 300 times as long",
        ),
        (
            |file| {
                file["normalizer"] = json!({ "type": "Precompiled", "precompiled_charsmap": "AAAAQAAAAAA=" })
            },
            "`normalizer.type` is \"Precompiled\", but obsdiff knows no such step, or it is damaged",
        ),
        (
            |file| {
                let bytes = json!({ "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true });
                file["pre_tokenizer"] = pre_tokenizers(vec![bytes; 26]);
            },
            "`pre_tokenizer.pretokenizers[1]` and the steps before it can make a prompt 352 times as long",
        ),
        (
            |file| file["normalizer"] = normalizers(vec![json!({ "type": "NFC" }); 2000]),
            "`normalizer.normalizers[5]` and the steps before it",
        ),
        (
            |file| file["normalizer"] = normalizers(vec![json!({ "type": "StripAccents" }); 2000]),
            "`normalizer.normalizers[16]` is one step too many: at most 16",
        ),
        (|file| file["normalizer"] = json!({ "type": "Reverse" }), "`normalizer.type` is \"Reverse\""),
        (|file| file["normalizer"] = json!({ "prepend": "a" }), "`normalizer.type` is absent"),
        (
            |file| {
                let pieces = file["post_processor"]["single"].as_array_mut().unwrap();
                pieces.push(pieces[0].clone());
            },
            "`post_processor` has a template `single` in which the prompt is more than once",
        ),
        (
            |file| {
                let prompt = json!({ "Sequence": { "id": "A", "type_id": 0 } });
                // The library takes it for a template all the same.
                let template = json!({
                    "type": "ByteLevel", "single": [prompt, prompt], "pair": [], "special_tokens": {}
                });
                file["post_processor"] = json!({ "type": "Sequence", "processors": [template] });
            },
            "`post_processor` has a template `single` in which the prompt is more than once",
        ),
        (
            |file| file["post_processor"]["special_tokens"]["</s>"]["tokens"] = json!(["a".repeat(20_000)]),
            "bytes: at most 16384 are read",
        ),
        (
            |file| file["model"]["unk_token"] = json!("a".repeat(600)),
            "`model` has a token of 600 bytes: at most 512 are read",
        ),
        (
            |file| file["model"]["vocab"].as_array_mut().unwrap().push(json!(["a".repeat(600), 0.0])),
            "`model` has a token of 600 bytes",
        ),
        (|file| file["model"]["vocab"] = json!({ ("a".repeat(600)): 0 }), "`model` has a token of 600 bytes"),
        (
            |file| file["added_tokens"][0]["content"] = json!("a".repeat(600)),
            "`added_tokens` has a token of 600 bytes",
        ),
        (
            |file| file["added_tokens"] = json!(vec![file["added_tokens"][0].clone(); 16_385]),
            "`added_tokens` has 16385 tokens: at most 16384 are read",
        ),
    ];
    for (edit, message) in cases {
        let error = t5(edit).unwrap_err().to_string();
        assert!(error.contains("tokenizer.json: `") && error.contains(message), "{message}: {error}");
    }
}

#[test]
fn long_tokens_of_the_other_files_are_refused_too() {
    let folder = copy_folder("tokenizer");
    edit_json(&folder.path().join("tokenizer_config.json"), |config| {
        config["added_tokens_decoder"]["579"]["content"] = json!("a".repeat(600));
    });
    let error = PromptTokenizer::clip(folder.path(), LENGTH).unwrap_err().to_string();
    let message = "tokenizer_config.json: `added_tokens_decoder` has a token of 600 bytes";
    assert!(error.contains(message), "{error}");
    let folder = copy_folder("tokenizer");
    edit_json(&folder.path().join("vocab.json"), |vocab| vocab["a".repeat(600)] = json!(0));
    let error = PromptTokenizer::clip(folder.path(), LENGTH).unwrap_err().to_string();
    assert!(error.contains("vocab.json: has a token of 600 bytes: at most 512 are read"), "{error}");
}

/// Of two keys of one name the library could run one where the other was checked.
#[test]
fn of_a_key_that_is_there_twice_what_was_checked_is_run() {
    let folder = copy_folder("tokenizer_3");
    let path = folder.path().join("tokenizer.json");
    let mut file: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let with_first = |normalizer: &str, file: &Value| {
        let text = file.to_string();
        fs::write(&path, format!("{{\"normalizer\": {normalizer}, {}", &text[1..])).unwrap();
        PromptTokenizer::t5(folder.path(), LENGTH)
    };
    let expected = PromptTokenizer::t5(&asset("tokenizer_3"), LENGTH).unwrap().encode("a b").unwrap();
    let tokenizer = with_first(&normalizers(vec![doubling(); 26]).to_string(), &file).unwrap();
    assert_eq!(tokenizer.encode("a b").unwrap(), expected);

    file.as_object_mut().unwrap().remove("normalizer");
    let long = "a".repeat(1000);
    let twice =
        format!(r#"{{"type": "Strip", "type": "Strip", "pattern": {{"String": "a"}}, "content": "{long}"}}"#);
    let error = with_first(&twice, &file).unwrap_err().to_string();
    assert!(error.contains("tokenizer.json: is not the JSON expected here"), "{error}");
}
