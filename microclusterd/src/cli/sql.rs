//! `microctl sql`: statements on the cluster's database.

mod prompt;
mod statement;

use std::io::{self, IsTerminal, Read};

use anyhow::{Context as _, bail};
use clap::Args;
use microcluster_client::{Client, SqlRequest, SqlResult, SqlResultType, SqlResults};
use serde_json::Value;

use super::failure::Usage;
use super::output::{Field, Format, Listing, Look, Output, print};

/// Most bytes of statements taken from standard input.
const INPUT_BYTES_MAX: u64 = 64 << 20;

#[derive(Debug, Args)]
#[command(after_help = "\
All statements of one call are one atomic transaction. Without a query, on a terminal: a prompt.

Examples:
  microctl sql \"SELECT name, role FROM members\"
  microctl sql \"INSERT INTO t VALUES (1); SELECT * FROM t\"
  microctl sql .dump > backup.sql
  microctl sql - < statements.sql")]
pub struct Arguments {
    /// Statements; `-` reads them from standard input; `.dump` and `.schema` print the database as SQL
    query: Option<String>,
    #[command(flatten)]
    output: Output,
}

impl Arguments {
    pub async fn run(self, client: &Client) -> anyhow::Result<()> {
        let format = self.output.format;
        match self.query.as_deref() {
            Some("-") => run(client, &read_input().await?, format).await,
            Some(query) => run(client, query, format).await,
            None if io::stdin().is_terminal() && io::stdout().is_terminal() => prompt::run_prompt(client, format).await,
            None => Err(Usage::new("no query: give one, or `-` to read it from standard input").into()),
        }
    }
}

/// Runs a dot command or statements, and prints what comes back.
async fn run(client: &Client, query: &str, format: Format) -> anyhow::Result<()> {
    let query = query.trim();
    if query.is_empty() {
        return Err(Usage::new("the query is empty").into());
    }
    match query {
        ".dump" => print(&with_newline(client.sql_dump(false).await?.text)),
        ".schema" => print(&with_newline(client.sql_dump(true).await?.text)),
        _ if query.starts_with('.') => {
            Err(Usage::new(format!("there is no command {query}; there are .dump and .schema")).into())
        }
        _ => {
            let results = client.sql(&SqlRequest::new(query)).await?;
            print(&render(&results, format, Look::of_stdout())?)
        }
    }
}

async fn read_input() -> anyhow::Result<String> {
    let read = || {
        let mut text = String::new();
        io::stdin().lock().take(INPUT_BYTES_MAX + 1).read_to_string(&mut text).map(|_| text)
    };
    let text = tokio::task::spawn_blocking(read).await?.context("cannot read standard input")?;
    if text.len() as u64 > INPUT_BYTES_MAX {
        bail!("standard input has more than {} MiB of statements; split it", INPUT_BYTES_MAX >> 20);
    }
    Ok(text)
}

fn with_newline(mut text: String) -> String {
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    text
}

/// The results, one after the other; for programs all of them as one object.
fn render(results: &SqlResults, format: Format, look: Look) -> anyhow::Result<String> {
    if matches!(format, Format::Json | Format::Yaml) {
        return format.render(look, results, |_| Listing::new([""; 0]));
    }
    let results = results.results.as_deref().unwrap_or_default();
    let mut text = String::new();
    for (index, result) in results.iter().enumerate() {
        if results.len() > 1 {
            // Counted from 0, as the tools of the Go implementation do.
            let space = if index > 0 { "\n" } else { "" };
            text.push_str(&format!("{space}=> Query {index}:\n\n"));
        }
        match result.kind {
            SqlResultType::Exec => {
                text.push_str(&format!("Rows affected: {}\n", result.rows_affected));
            }
            SqlResultType::Select => text.push_str(&format.render(look, result, |r| rows(r, format))?),
        }
    }
    Ok(text)
}

fn rows(result: &SqlResult, format: Format) -> Listing {
    let mut listing = Listing::new(result.columns.iter().flatten().map(String::as_str));
    for row in result.rows.iter().flatten() {
        listing.row(row.iter().map(|value| Field::new(value_text(value, format))));
    }
    listing
}

fn value_text(value: &Value, format: Format) -> String {
    match value {
        Value::String(text) => text.clone(),
        // An empty field is what other programs take for NULL.
        Value::Null if format == Format::Csv => String::new(),
        Value::Null => "NULL".into(),
        other => other.to_string(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    fn select() -> SqlResult {
        let columns = vec!["k".into(), "n".into()];
        let rows = vec![vec![json!("a"), json!(i64::MAX)], vec![json!("x'00ff'"), Value::Null]];
        SqlResult::select(columns, rows)
    }

    fn rendered(results: Vec<SqlResult>, format: Format) -> String {
        render(&SqlResults { results: Some(results) }, format, Look::PLAIN).unwrap()
    }

    #[test]
    fn one_result_has_no_heading() {
        assert_eq!(rendered(vec![SqlResult::exec(3)], Format::Table), "Rows affected: 3\n");
        let table = "\
+---------+---------------------+
| k       | n                   |
+===============================+
| a       | 9223372036854775807 |
| x'00ff' | NULL                |
+---------+---------------------+
";
        assert_eq!(rendered(vec![select()], Format::Table), table);
        assert_eq!(rendered(vec![select()], Format::Csv), "a,9223372036854775807\nx'00ff',\n");
    }

    #[test]
    fn several_results_are_told_apart() {
        let text = rendered(vec![SqlResult::exec(1), select()], Format::Compact);
        assert_eq!(
            text,
            "=> Query 0:\n\nRows affected: 1\n\n=> Query 1:\n\n\
             k        n\na        9223372036854775807\nx'00ff'  NULL\n"
        );
    }

    #[test]
    fn programs_get_one_object() {
        let json: Value = serde_json::from_str(&rendered(vec![select()], Format::Json)).unwrap();
        assert_eq!(json["Results"][0]["rows"][0][1], json!(i64::MAX));
        assert_eq!(render(&SqlResults::default(), Format::Table, Look::PLAIN).unwrap(), "");
    }
}
