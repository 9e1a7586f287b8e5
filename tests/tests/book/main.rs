//! The handbook in `doc/`: it builds, has all its pages, and every link in it leads somewhere. (The programs in it are tests of
//! the crates that they are for.)
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use mdbook_driver::MDBook;

const SUMMARY: &str = "SUMMARY.md";

#[test]
fn the_book_builds_with_every_page() {
    let built = tempfile::tempdir().unwrap();
    let mut book = MDBook::load(doc()).expect("the book is readable");
    book.config.build.build_dir = built.path().into();
    book.build().expect("the book builds");
    for page in pages() {
        let page = built.path().join(page).with_extension("html");
        assert!(fs::metadata(&page).is_ok_and(|page| page.len() > 1000), "{} was made", page.display());
    }
}

#[test]
fn the_summary_lists_every_page_once() {
    let linked = links(&read(&doc().join(SUMMARY)));
    let listed: BTreeSet<_> = linked.iter().cloned().collect();
    assert_eq!(listed.len(), linked.len(), "a page is listed twice: {linked:?}");
    assert_eq!(listed, pages());
}

#[test]
fn every_link_leads_somewhere() {
    let root = doc().parent().unwrap().to_owned();
    let mut texts: Vec<_> = pages().into_iter().map(|page| doc().join(page)).collect();
    texts.extend(
        ["README.md", "example/extended/README.md", "example/kv/README.md", "example/notes/README.md"]
            .map(|f| root.join(f)),
    );
    let mut checked = 0;
    let mut broken = Vec::new();
    for file in texts {
        for link in links(&read(&file)) {
            if link.starts_with("http://") || link.starts_with("https://") {
                continue;
            }
            checked += 1;
            if let Err(reason) = resolve(&file, &link) {
                broken.push(format!("{}: {link}: {reason}", file.strip_prefix(&root).unwrap().display()));
            }
        }
    }
    assert!(checked > 100, "the links were found: {checked}");
    assert!(broken.is_empty(), "broken links:\n{}", broken.join("\n"));
}

#[test]
fn links_and_headings_are_found_outside_of_code() {
    let text =
        "# A `b/c` (d)\n[x](a.md) and `[y](b.md)` ![z](c.png)\n```\n[no](d.md)\n# no\n```\n## A-b_c\n# A b/c d\n";
    assert_eq!(links(text), ["a.md", "c.png"]);
    assert_eq!(anchors(text), BTreeSet::from(["a-bc-d", "a-b_c", "a-bc-d-1"].map(String::from)));
}

/// Whether what a page links to is there.
fn resolve(from: &Path, link: &str) -> Result<(), String> {
    let (path, anchor) = link.split_once('#').map_or((link, None), |(path, anchor)| (path, Some(anchor)));
    let file = if path.is_empty() { from.to_owned() } else { from.parent().unwrap().join(path) };
    if !file.exists() {
        return Err("there is no such file".into());
    }
    match anchor {
        Some(anchor) if !anchors(&read(&file)).contains(anchor) => Err("there is no such heading".into()),
        _ => Ok(()),
    }
}

/// The targets of the links of a text, in their order.
fn links(text: &str) -> Vec<String> {
    let mut links = Vec::new();
    for line in prose(text) {
        // Every second part is between backquotes.
        let outside: String = line.split('`').step_by(2).collect::<Vec<_>>().join("");
        for rest in outside.split("](").skip(1) {
            links.push(rest.split_once(')').map_or(rest, |(target, _)| target).to_owned());
        }
    }
    links
}

/// What the headings of a text can be linked by.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut seen = BTreeMap::new();
    let headings =
        prose(text).filter_map(|line| line.strip_prefix('#').map(|rest| rest.trim_start_matches('#').trim()));
    let anchor = |heading: &str| {
        let kept = heading.chars().filter(|c| c.is_alphanumeric() || "-_ ".contains(*c));
        let anchor: String = kept.flat_map(char::to_lowercase).map(|c| if c == ' ' { '-' } else { c }).collect();
        let before = seen.entry(anchor.clone()).or_insert(0);
        *before += 1;
        if *before == 1 { anchor } else { format!("{anchor}-{}", *before - 1) }
    };
    headings.map(anchor).collect()
}

/// The lines outside of blocks of code.
fn prose(text: &str) -> impl Iterator<Item = &str> {
    let mut is_code = false;
    text.lines().filter(move |line| {
        let fence = line.trim_start().starts_with("```");
        is_code ^= fence;
        !is_code && !fence
    })
}

fn pages() -> BTreeSet<String> {
    let names = fs::read_dir(doc()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.ends_with(".md") && name != SUMMARY).collect()
}

fn read(file: &Path) -> String {
    fs::read_to_string(file).unwrap_or_else(|e| panic!("{}: {e}", file.display()))
}

fn doc() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("doc")
}
