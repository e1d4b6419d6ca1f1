//! The manual says what the program does: every key, flag, variable of the command and
//! exit code of the one is in the other. The shipped examples are valid.

use crate::bed::locum;
use std::collections::BTreeSet;
use std::path::PathBuf;

fn shipped(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn said(args: &[&str]) -> String {
    String::from_utf8_lossy(&locum(args).stdout).into_owned()
}

fn page(name: &str) -> String {
    std::fs::read_to_string(shipped(name)).unwrap()
}

/// The words of `text` that begin with `prefix`, cut at the first byte that `part` refuses.
fn words(text: &str, prefix: &str, part: impl Fn(char) -> bool) -> BTreeSet<String> {
    let start = |(i, _): (usize, &str)| text[..i].ends_with(|c: char| c.is_whitespace() || "[.".contains(c));
    let word = |(i, _): (usize, &str)| {
        let rest = &text[i + prefix.len()..];
        let end = rest.find(|c: char| !part(c)).unwrap_or(rest.len());
        rest[..end].to_owned()
    };
    text.match_indices(prefix).filter(|m| start(*m)).map(word).filter(|w| !w.is_empty()).collect()
}

#[test]
fn every_key_has_its_place_in_the_manual_and_the_other_way_round() {
    let told: BTreeSet<String> = said(&["help", "configuration"])
        .lines()
        .filter_map(|line| line.strip_prefix("  ").filter(|l| !l.starts_with(' ')))
        .filter_map(|line| line.split_whitespace().next().map(str::to_owned))
        .collect();
    let written: BTreeSet<String> =
        page("man/locum.toml.5").lines().filter_map(|line| line.strip_prefix(".It Sy ").map(str::to_owned)).collect();
    assert!(told.len() > 20, "{told:?}");
    assert_eq!(told, written);
}

#[test]
fn every_flag_has_its_place_in_the_manual_and_the_other_way_round() {
    let letters = |c: char| c.is_ascii_lowercase() || c == '-';
    let told: BTreeSet<String> = ["run", "check", "status", "schema"]
        .iter()
        .flat_map(|sub| words(&said(&[sub, "--help"]), "--", letters))
        .chain(["version".to_owned()])
        .collect();
    let written = words(&page("man/locum.8"), "Fl -", letters);
    assert!(told.len() > 12, "{told:?}");
    assert_eq!(told, written);
}

#[test]
fn every_exit_code_is_in_the_manual() {
    let manual = page("man/locum.8");
    for line in said(&["help", "exit-codes"]).lines().skip(1) {
        let code = line.split_whitespace().next().unwrap();
        assert!(code == "else" || manual.contains(&format!("\n.It {code}\n")), "{line}");
    }
}

#[test]
fn the_shipped_examples_are_valid() {
    for name in ["etc/minimal.toml", "etc/file-store.toml", "etc/shop.toml"] {
        let out = locum(&["check", "-c", shipped(name).to_str().unwrap()]);
        assert_eq!(out.status.code(), Some(0), "{name}: {}", String::from_utf8_lossy(&out.stderr));
    }
}
