//! Every command of `microctl` that the handbook and the READMEs show exists, with the arguments that they show.

use std::fs;
use std::path::Path;

use clap::Parser;

use super::Microctl;

#[test]
fn the_commands_of_the_handbook_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let pages = fs::read_dir(root.join("doc")).unwrap().map(|entry| entry.unwrap().path());
    let readmes = ["README.md", "example/extended/README.md", "example/kv/README.md", "example/notes/README.md"];
    let files = pages.filter(|path| path.extension().is_some_and(|extension| extension == "md"));
    let files: Vec<_> = files.chain(readmes.map(|readme| root.join(readme))).collect();
    let (mut found, mut wrong) = (0, Vec::new());
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        for line in text.lines().filter_map(|line| line.trim_start().strip_prefix("$ ")) {
            for arguments in commands(line) {
                found += 1;
                if let Err(error) = Microctl::try_parse_from(&arguments) {
                    wrong.push(format!("{}: {}: {error}", file.display(), arguments.join(" ")));
                }
            }
        }
    }
    assert!(found > 40, "the commands were found: {found}");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn commands_are_found_in_a_line_of_a_shell() {
    let line = r#"umask 077; microctl init a 1.1.1.1:1 --token $(microctl tokens add a) && x | microctl sql "a; b" > f  # microctl"#;
    let expected: [&[&str]; 3] = [
        &["microctl", "tokens", "add", "a"],
        &["microctl", "init", "a", "1.1.1.1:1", "--token", "X"],
        &["microctl", "sql", "a; b"],
    ];
    assert_eq!(commands(line), expected);
}

/// The commands of `microctl` in a line, those within `$(…)` first.
fn commands(line: &str) -> Vec<Vec<String>> {
    let mut line = line.to_owned();
    let mut found = Vec::new();
    while let Some(start) = line.rfind("$(") {
        let end = line[start..].find(')').map_or(line.len(), |end| start + end);
        found.extend(commands(&line[start + 2..end]));
        line.replace_range(start..(end + 1).min(line.len()), "X");
    }
    for words in simple_commands(&line) {
        if words.first().is_some_and(|program| program == "microctl") {
            found.push(words);
        }
    }
    found
}

/// The words of each simple command, without quotes.
fn simple_commands(line: &str) -> Vec<Vec<String>> {
    let (mut commands, mut words, mut word) = (Vec::new(), Vec::new(), String::new());
    let mut quote = None;
    for c in line.chars().chain([';']) {
        match quote {
            Some(closing) if c == closing => quote = None,
            Some(_) => word.push(c),
            None if c == '"' || c == '\'' => quote = Some(c),
            None if c.is_whitespace() || ";|&<>#".contains(c) => {
                if !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
                if c == '#' {
                    break;
                }
                if !c.is_whitespace() {
                    commands.push(std::mem::take(&mut words));
                }
            }
            None => word.push(c),
        }
    }
    commands.push(words);
    // The keywords of a loop.
    let is_keyword = |word: &String| word == "do";
    commands.into_iter().map(|words| words.into_iter().skip_while(is_keyword).collect()).collect()
}
