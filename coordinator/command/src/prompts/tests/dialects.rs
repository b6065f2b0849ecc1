//! What each kind of prompt file is read as, to the letter.

use proptest::prelude::*;

use super::{Folder, read};

/// Content of a file, its name, and the prompts in it or the end of the one line that refuses it.
type Case<'a> = (&'a str, &'a str, Result<&'a [&'a str], &'a str>);

fn check(column: Option<&str>, cases: &[Case<'_>]) {
    let dir = Folder::new();
    for (name, content, expected) in cases {
        let found = read(&dir.file(name, content), column).map_err(|e| e.line());
        match expected {
            Ok(prompts) => {
                assert_eq!(found.as_deref().ok(), Some(&owned(prompts)[..]), "{content:?}: {found:?}")
            }
            Err(says) => {
                let said = found.expect_err(content);
                assert!(said.ends_with(&format!("{name}: {says}")), "{content:?}: {said}");
            }
        }
    }
}

fn owned(prompts: &[&str]) -> Vec<String> {
    prompts.iter().map(|prompt| prompt.to_string()).collect()
}

#[test]
fn lines_of_text_end_in_lf_crlf_or_cr() {
    let three: Result<&[&str], &str> = Ok(&["a red circle", "a blue square", "a dog"]);
    check(
        None,
        &[
            ("lf.txt", "a red circle\na blue square\na dog\n", three),
            ("crlf.txt", "a red circle\r\na blue square\r\na dog\r\n", three),
            ("cr.txt", "a red circle\ra blue square\ra dog\r", three),
            ("mixed.txt", "\u{feff}a red circle\r\r\na blue square\n\ra dog", three),
            // No other character ends a line.
            ("form-feed.txt", "a\u{c}b\u{2028}c\u{85}d\n", Ok(&["a\u{c}b\u{2028}c\u{85}d"])),
        ],
    );
}

#[test]
fn a_file_in_another_encoding_is_refused_with_the_remedy() {
    let dir = Folder::new();
    let utf16: Vec<u8> = "a dog\n".encode_utf16().flat_map(u16::to_le_bytes).collect();
    let marked = [&[0xff, 0xfe][..], &utf16].concat();
    for (name, content, says) in [
        ("utf16.txt", utf16, "utf16.txt: line 1 holds a NUL byte: save the file as UTF-8 text"),
        ("marked.txt", marked, "marked.txt: line 1 is not UTF-8 text: save the file as UTF-8"),
        (
            "latin.txt",
            b"a\rb\r\xe9\r".to_vec(),
            "latin.txt: line 3 is not UTF-8 text: save the file as UTF-8",
        ),
    ] {
        let said = read(&dir.file(name, content), None).unwrap_err().line();
        assert!(said.ends_with(says), "{said}");
    }
}

#[test]
fn a_row_of_more_or_fewer_fields_than_the_header_is_refused_by_line() {
    check(
        Some("text"),
        &[
            (
                "more.csv",
                "id,text\n1,a red circle\n2,a dog, on grass\n",
                Err(
                    "line 3 has 3 fields, but the header has 2: a field that holds a comma belongs in quotes",
                ),
            ),
            (
                "fewer.csv",
                "text,id\r\na red circle,1\r\na dog\r\n",
                Err("line 3 has 1 field, but the header has 2: leave a field empty rather than out"),
            ),
            (
                "more.tsv",
                "text\tid\na red\tcircle\t1\n",
                Err("line 2 has 3 fields, but the header has 2: a field cannot hold a tab outside of quotes"),
            ),
            (
                "one.csv",
                "text\na, b\n",
                Err(
                    "line 2 has 2 fields, but the header has 1: a field that holds a comma belongs in quotes",
                ),
            ),
            // A row may take several lines, and is named by its first.
            (
                "long.csv",
                "id,text\n1,\"a\nb\"\n2,\"c\nd\",3\n",
                Err(
                    "line 4 has 3 fields, but the header has 2: a field that holds a comma belongs in quotes",
                ),
            ),
        ],
    );
}

#[test]
fn a_quote_that_stays_open_is_refused_where_it_opens() {
    check(
        Some("text"),
        &[
            ("end.csv", "id,text\n1,a\n2,\"a dog\n3,a cat\n", Err("line 3 opens a quote that never closes")),
            ("header.csv", "id,\"text\n1,a\n", Err("line 1 opens a quote that never closes")),
            // The next quote would close it, and three rows become one.
            (
                "next.csv",
                "id,text\n1,\"a dog\n2,a cat\n3,\"a fox\"\n",
                Err(
                    "line 4 goes on behind the quote that closes a field, which was opened on line 2: double a quote inside of a field",
                ),
            ),
            (
                "next.tsv",
                "text\tid\n\"a dog\t1\na cat\"\t2\n",
                Err("line 2 opens a quote that does not close on the line: double it and quote the field"),
            ),
        ],
    );
}

#[test]
fn a_quote_inside_of_a_field_is_what_the_dialect_says() {
    let plain = "has a quote inside of a field that is not quoted: double it and quote the field";
    let behind = "goes on behind the quote that closes a field, which was opened on line 2: double a quote inside of a field";
    let (plain, behind) = (format!("line 2 {plain}"), format!("line 2 {behind}"));
    check(
        Some("text"),
        &[
            ("inside.csv", "text,id\na 5\" disk,1\n", Err(&plain)),
            // Else the comma would part the prompt, and the row still have two fields.
            ("part.csv", "text,id\nthe \"big, red\" dog\n", Err(&plain)),
            ("space.csv", "id,text\n1, \"a, b\"\n", Err(&plain)),
            ("behind.csv", "text,id\n\"a\" dog,1\n", Err(&behind)),
            ("doubled.csv", "text,id\n\"a \"\"big\"\", red dog\",1\n", Ok(&["a \"big\", red dog"])),
            (
                "inside.tsv",
                "text\tid\na 5\" disk\t1\nthe \"big\" dog\t2\n",
                Ok(&["a 5\" disk", "the \"big\" dog"]),
            ),
            ("behind.tsv", "text\tid\n\"a\" dog\t1\n", Err(&behind)),
            ("quoted.tsv", "text\tid\n\"a \"\"big\"\"\tdog\"\t1\n", Ok(&["a \"big\"\tdog"])),
        ],
    );
}

#[test]
fn line_breaks_in_quotes_belong_to_the_prompt() {
    check(
        Some("text"),
        &[
            ("lf.csv", "text\n\"a\nb\"\nc\n", Ok(&["a\nb", "c"])),
            ("crlf.csv", "text\r\n\"a\r\nb\"\r\nc\r\n", Ok(&["a\r\nb", "c"])),
            ("cr.csv", "text\r\"a\rb\"\rc", Ok(&["a\rb", "c"])),
            ("blank.csv", "text\n\"a\n\nb\"\n", Ok(&["a\n\nb"])),
        ],
    );
}

#[test]
fn a_row_without_a_prompt_is_refused_so_that_no_id_shifts() {
    check(
        Some("text"),
        &[
            (
                "a.csv",
                "id,text\n1,a\n2,\n3,c\n",
                Err("line 3 has an empty `text`: give it a prompt, or remove the row"),
            ),
            (
                "b.csv",
                "text\na\n\"\"\n",
                Err("line 3 has an empty `text`: give it a prompt, or remove the row"),
            ),
            (
                "c.tsv",
                "id\ttext\n1\t \n",
                Err("line 2 has an empty `text`: give it a prompt, or remove the row"),
            ),
            (
                "d.jsonl",
                "{\"text\": \"\"}",
                Err("line 1 has an empty `text`: give it a prompt, or remove the object"),
            ),
            // A blank line is no row.
            ("e.csv", "id,text\n1,a\n\n2,b\n  \n", Ok(&["a", "b"])),
        ],
    );
}

#[test]
fn a_column_that_is_there_twice_is_refused() {
    check(
        Some("text"),
        &[
            ("twice.csv", "text,id,text\na,1,b\n", Err("has more than one column `text`")),
            ("other.csv", "id,text,id\n1,a,2\n", Ok(&["a"])),
            ("quoted.csv", "\u{feff}\"text\",\"id\"\na,1\n", Ok(&["a"])),
            ("empty.csv", "", Err("holds no prompt: write some into it")),
        ],
    );
}

#[test]
fn an_object_has_its_prompt_once_and_as_text() {
    check(
        Some("text"),
        &[
            ("twice.jsonl", "{\"text\": \"a\", \"text\": \"b\"}", Err("line 1 has `text` more than once")),
            (
                "null.jsonl",
                "{\"text\": \"a\"}\r{\"text\": null}",
                Err("line 2 has a `text` that is not a string"),
            ),
            ("list.jsonl", "{\"text\": [\"a\"]}", Err("line 1 has a `text` that is not a string")),
            ("nul.jsonl", "{\"text\": \"a\\u0000b\"}", Err("line 1 has a NUL character in its `text`")),
            ("other.jsonl", "{\"id\": 1, \"id\": 2, \"text\": \"a\"}", Ok(&["a"])),
            ("break.jsonl", "\u{feff}{\"text\": \"a\\nb\"}\r\n\r\n{\"text\": \"c\"}", Ok(&["a\nb", "c"])),
        ],
    );
    let dir = Folder::new();
    let pretty = dir.file("pretty.jsonl", "{\n  \"text\": \"a\"\n}\n");
    let said = read(&pretty, Some("text")).unwrap_err().line();
    assert!(said.contains("line 1 is not a JSON object"), "{said}");
}

proptest! {
    #[test]
    fn a_table_that_is_written_reads_back_the_same(
        prompts in prop::collection::vec("[a\",\t \u{e9}\n\r]{0,6}x[a\",\t\n\r]{0,6}y", 1..6),
        delimiter in prop::sample::select(vec![b',', b'\t']),
        quotes in prop::sample::select(vec![csv::QuoteStyle::Always, csv::QuoteStyle::Necessary]),
        end in prop::sample::select(vec![csv::Terminator::CRLF, csv::Terminator::Any(b'\n'), csv::Terminator::Any(b'\r')]),
    ) {
        // Tables of tabs hold no line break.
        let breaks = |prompt: &String| delimiter == b',' || !prompt.contains(['\n', '\r']);
        let prompts: Vec<String> =
            prompts.iter().map(|prompt| prompt.trim().to_owned()).filter(breaks).collect();
        prop_assume!(!prompts.is_empty());
        let mut writer =
            csv::WriterBuilder::new().delimiter(delimiter).quote_style(quotes).terminator(end).from_writer(Vec::new());
        writer.write_record(["id", "text"]).unwrap();
        for (id, prompt) in prompts.iter().enumerate() {
            writer.write_record([&id.to_string(), prompt]).unwrap();
        }
        let name = if delimiter == b',' { "p.csv" } else { "p.tsv" };
        let file = Folder::new();
        let file = (file.file(name, writer.into_inner().unwrap()), file);
        prop_assert_eq!(read(&file.0, Some("text")).unwrap(), prompts);
    }
}
