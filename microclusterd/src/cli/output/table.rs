//! Rows and columns for people: tables that fit the terminal, and comma-separated values.

use std::env;
use std::io::{self, IsTerminal};

use comfy_table::presets::{ASCII_FULL_CONDENSED, NOTHING};
use comfy_table::{Cell, Color, ColumnConstraint, ContentArrangement, Table};

/// What the reader's side of standard output can show.
#[derive(Debug, Clone, Copy)]
pub(in crate::cli) struct Look {
    /// Tables are made to fit the terminal.
    terminal: bool,
    colour: bool,
}

impl Look {
    /// A file or a pipe.
    #[cfg(test)]
    pub const PLAIN: Look = Look { terminal: false, colour: false };

    /// What standard output is. Colour is for terminals, and never with `NO_COLOR`.
    pub fn of_stdout() -> Self {
        let terminal = io::stdout().is_terminal();
        let unwanted = env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Look { terminal, colour: terminal && !unwanted }
    }
}

/// Rows under a header.
pub(in crate::cli) struct Listing {
    header: Vec<String>,
    rows: Vec<Vec<Field>>,
    /// Column that gives way when the terminal is narrow.
    wrapped: Option<usize>,
}

/// One field of a [`Listing`].
pub(in crate::cli) struct Field {
    text: String,
    colour: Option<Color>,
}

impl Field {
    pub fn new(text: impl Into<String>) -> Self {
        Field { text: text.into(), colour: None }
    }

    /// Something that is as it should be.
    pub fn good(text: impl Into<String>) -> Self {
        Field { text: text.into(), colour: Some(Color::Green) }
    }

    /// Something to look after.
    pub fn bad(text: impl Into<String>) -> Self {
        Field { text: text.into(), colour: Some(Color::Red) }
    }
}

impl Listing {
    pub fn new<T: Into<String>>(header: impl IntoIterator<Item = T>) -> Self {
        let header = header.into_iter().map(Into::into).collect();
        Listing { header, rows: Vec::new(), wrapped: None }
    }

    pub fn row(&mut self, fields: impl IntoIterator<Item = Field>) {
        self.rows.push(fields.into_iter().collect());
    }

    /// The same, where one column alone is wrapped when the terminal is narrow.
    pub fn wrapping(mut self, column: usize) -> Self {
        self.wrapped = Some(column);
        self
    }

    pub fn table(&self, look: Look) -> String {
        let mut table = self.arranged(look);
        table.load_style(ASCII_FULL_CONDENSED);
        table.to_string() + "\n"
    }

    pub fn compact(&self, look: Look) -> String {
        let mut table = self.arranged(look);
        table.load_style(NOTHING);
        for column in table.column_iter_mut() {
            column.set_padding((0, 2));
        }
        let lines = table.lines().map(|line| line.trim_end().to_owned() + "\n");
        lines.collect()
    }

    pub fn csv(&self) -> String {
        let mut text = String::new();
        for row in &self.rows {
            let fields: Vec<_> = row.iter().map(|field| csv_field(&field.text)).collect();
            text.push_str(&fields.join(","));
            text.push('\n');
        }
        text
    }

    fn arranged(&self, look: Look) -> Table {
        let mut table = Table::new();
        if !look.terminal {
            table.force_no_tty();
        }
        let arrangement = match look.terminal {
            true => ContentArrangement::Dynamic,
            false => ContentArrangement::Disabled,
        };
        table.set_content_arrangement(arrangement);
        table.set_header(self.header.iter().map(|name| printable(name)));
        for row in &self.rows {
            table.add_row(row.iter().map(|field| {
                let cell = Cell::new(printable(&field.text));
                match field.colour {
                    Some(colour) if look.colour => cell.fg(colour),
                    _ => cell,
                }
            }));
        }
        if let Some(wrapped) = self.wrapped {
            for column in table.column_iter_mut().filter(|column| column.index != wrapped) {
                column.set_constraint(ColumnConstraint::ContentWidth);
            }
        }
        table
    }
}

/// A field of comma-separated values, quoted where it must be.
fn csv_field(text: &str) -> String {
    if text.contains([',', '"', '\n', '\r']) || text.starts_with(' ') {
        format!("\"{}\"", text.replace('"', "\"\""))
    } else {
        text.to_owned()
    }
}

/// Data must not control the terminal: control characters are written as escapes.
fn printable(text: &str) -> String {
    if !text.contains(|c: char| c.is_control() && c != '\n') {
        return text.to_owned();
    }
    text.chars().fold(String::with_capacity(text.len()), |mut all, c| {
        match c {
            '\n' => all.push('\n'),
            c if c.is_control() => all.extend(c.escape_default()),
            c => all.push(c),
        }
        all
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_cannot_control_the_terminal() {
        assert_eq!(printable("a\u{1b}[31mb\tc\nd"), "a\\u{1b}[31mb\\tc\nd");
    }

    #[test]
    fn values_with_separators_are_quoted() {
        assert_eq!(csv_field("plain"), "plain");
        assert_eq!(csv_field("a\nb"), "\"a\nb\"");
        assert_eq!(csv_field(" a"), "\" a\"");
    }

    #[test]
    fn a_table_without_rows_is_its_header() {
        let listing = Listing::new(["NAME"]);
        assert_eq!(listing.csv(), "");
        assert_eq!(listing.compact(Look::PLAIN), "NAME\n");
        assert!(listing.table(Look::PLAIN).contains("| NAME |"));
    }
}
