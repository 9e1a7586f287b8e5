//! What goes to standard output: the formats, and a reader that goes away.

mod table;

use std::io::{self, IsTerminal, Write};

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use serde::Serialize;

pub(super) use table::{Field, Listing, Look};

/// How a result is written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// A table with borders that fits the terminal
    #[default]
    Table,
    /// A table without borders
    Compact,
    /// Comma-separated values, without a header
    Csv,
    /// The API's objects as JSON
    Json,
    /// The API's objects as YAML
    Yaml,
}

/// The choice of a format, for a command's arguments.
#[derive(Debug, Clone, Copy, Default, Args)]
pub struct Output {
    /// How to write the result
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT", hide_possible_values = true)]
    #[arg(help = "Format: table, compact, csv (no header), json or yaml")]
    pub format: Format,
}

/// Whoever read standard output has closed it: nothing is left to do, and nothing went wrong.
#[derive(Debug, thiserror::Error)]
#[error("standard output was closed")]
pub struct ClosedPipe;

/// Writes a text to standard output.
///
/// # Errors
/// [`ClosedPipe`] when nobody reads it any more, else what the system says.
pub fn print(text: &str) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Err(ClosedPipe.into()),
        result => result.context("cannot write to standard output"),
    }
}

/// A line of progress for a person: to standard error, and only to a terminal.
pub(super) fn tell(message: &str) {
    let mut stderr = io::stderr().lock();
    if stderr.is_terminal() {
        // Progress that cannot be shown is no reason to fail.
        let _ = writeln!(stderr, "{message}");
    }
}

/// What belongs to a result and is no part of it: a line on standard error, whoever reads it.
pub(super) fn note(message: &str) {
    // A note that cannot be shown is no reason to fail.
    let _ = writeln!(io::stderr().lock(), "{message}");
}

impl Format {
    /// Writes `objects` for programs, or the listing made from them for people.
    pub(super) fn render<T: Serialize>(
        self,
        look: Look,
        objects: &T,
        listing: impl FnOnce(&T) -> Listing,
    ) -> anyhow::Result<String> {
        Ok(match self {
            Format::Table => listing(objects).table(look),
            Format::Compact => listing(objects).compact(look),
            Format::Csv => listing(objects).csv(),
            Format::Json => serde_json::to_string_pretty(objects)? + "\n",
            Format::Yaml => serde_norway::to_string(objects)?,
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[derive(Serialize)]
    struct Member {
        name: &'static str,
        votes: bool,
    }

    fn rendered(format: Format) -> String {
        let members = [Member { name: "c1", votes: true }, Member { name: "a,\"b\"", votes: false }];
        let listing = |members: &[Member; 2]| {
            let mut listing = Listing::new(["NAME", "VOTES"]);
            for member in members {
                listing.row([Field::new(member.name), Field::new(member.votes.to_string())]);
            }
            listing
        };
        format.render(Look::PLAIN, &members, listing).unwrap()
    }

    #[test]
    fn every_format_has_its_shape() {
        let table = "\
+-------+-------+
| NAME  | VOTES |
+===============+
| c1    | true  |
| a,\"b\" | false |
+-------+-------+
";
        assert_eq!(rendered(Format::Table), table);
        assert_eq!(rendered(Format::Compact), "NAME   VOTES\nc1     true\na,\"b\"  false\n");
        assert_eq!(rendered(Format::Csv), "c1,true\n\"a,\"\"b\"\"\",false\n");
        let json: serde_json::Value = serde_json::from_str(&rendered(Format::Json)).unwrap();
        assert_eq!(json[1]["name"], "a,\"b\"");
        assert_eq!(rendered(Format::Yaml), "- name: c1\n  votes: true\n- name: a,\"b\"\n  votes: false\n");
    }

    #[test]
    fn unknown_formats_are_refused() {
        assert!(Format::from_str("xml", true).is_err());
        assert_eq!(Format::from_str("yaml", true), Ok(Format::Yaml));
    }
}
