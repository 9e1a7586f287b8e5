//! Holds the order of the layers: a module uses lower layers and siblings, never what lies above it.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::path::{Path, PathBuf};

/// The modules of each layer, lowest first.
const LAYERS: &[&[&str]] = &[
    &["backoff", "config", "error", "fuzz", "looks", "memory", "steps", "tasks"],
    &["state_dir", "tls", "token", "trust"],
    &["db"],
    &["cluster", "hooks", "state"],
    &["api", "extension", "recovery"],
    &["app", "builder", "daemon", "listener"],
    &["testing"],
];

/// Modules of one layer that use each other, as (user, used). The other direction would be a loop.
const SIBLINGS: &[(&str, &str)] = &[
    ("memory", "looks"),
    ("memory", "tasks"),
    ("trust", "state_dir"),
    ("trust", "tls"),
    ("state", "cluster"),
    ("hooks", "cluster"),
    ("hooks", "state"),
    ("tls", "state_dir"),
    ("builder", "daemon"),
    ("extension", "api"),
    ("daemon", "listener"),
];

#[test]
fn no_module_uses_what_lies_above_it() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    collect(&source, &mut files);
    assert!(files.len() > 40, "the source was found");
    let mut wrong = Vec::new();
    for file in files {
        let relative = file.strip_prefix(&source).expect("it is below the source");
        let first = relative.components().next().expect("it has a name").as_os_str();
        let module = Path::new(first).file_stem().and_then(|stem| stem.to_str()).expect("a name in UTF-8");
        if module == "lib" {
            continue;
        }
        let layer = layer(module).unwrap_or_else(|| panic!("{module} has no layer: give it one in this test"));
        for used in used_modules(&fs::read_to_string(&file).expect("a source file")) {
            let Some(lower) = crate::layer(&used) else { continue };
            let is_sibling = SIBLINGS.contains(&(module, used.as_str()));
            if used != module && (lower > layer || (lower == layer && !is_sibling)) {
                wrong.push(format!("{}: {module} uses {used}", relative.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "arrows upwards or between siblings:\n{}", wrong.join("\n"));
}

#[test]
fn uses_are_found() {
    let text = "use crate::db::{self, Error};\nfn f() { crate::state::State::x(); }\npub use crate::{tls, token::JoinToken};\n";
    assert_eq!(used_modules(text), ["db", "state", "tls", "token"]);
}

fn layer(module: &str) -> Option<usize> {
    LAYERS.iter().position(|layer| layer.contains(&module))
}

/// The modules behind every `crate::` of a file, `use` or not, outside of comments and tests.
fn used_modules(text: &str) -> Vec<String> {
    let mut used = Vec::new();
    for line in text.lines().take_while(|line| line.trim() != "#[cfg(test)]") {
        if line.trim_start().starts_with("//") {
            continue;
        }
        for rest in line.split("crate::").skip(1) {
            match rest.strip_prefix('{') {
                Some(group) => {
                    let group = group.split_once('}').map_or(group, |(group, _)| group);
                    used.extend(group.split(',').map(|item| first_name(item.trim())));
                }
                None => used.push(first_name(rest)),
            }
        }
    }
    used
}

fn first_name(path: &str) -> String {
    path.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect()
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a source folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}
