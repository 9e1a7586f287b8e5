//! The interactive prompt of `microctl sql`, with a history.

use std::env;
use std::fs;
use std::path::PathBuf;

use anyhow::Context as _;
use microcluster_client::Client;
use rustyline::error::ReadlineError;
use rustyline::{Config, DefaultEditor};

use super::run;
use super::statement::is_complete;
use crate::cli::failure::one_line;
use crate::cli::output::{ClosedPipe, Format, tell};

/// Most statements that the history keeps.
const HISTORY_LENGTH_MAX: usize = 1000;

/// Reads statements and runs them until the end of the input. An error is told and ends nothing.
pub(super) async fn run_prompt(client: &Client, format: Format) -> anyhow::Result<()> {
    let history = history_file();
    let config = Config::builder().max_history_size(HISTORY_LENGTH_MAX)?.build();
    let mut editor = DefaultEditor::with_config(config).context("cannot use this terminal")?;
    if let Some(history) = &history {
        // There is none the first time.
        let _ = editor.load_history(history);
    }
    tell("Statements end with a semicolon. `.schema`, `.dump`; `.exit` or Ctrl-D ends.");
    loop {
        let (returned, entered) = tokio::task::spawn_blocking(move || {
            let entered = read_statement(&mut editor);
            (editor, entered)
        })
        .await?;
        editor = returned;
        let Some(statement) = entered? else { break };
        if matches!(statement.as_str(), ".exit" | ".quit") {
            break;
        }
        if let Err(error) = run(client, &statement, format).await {
            if error.is::<ClosedPipe>() {
                return Err(error);
            }
            eprintln!("Error: {}", one_line(&error));
        }
    }
    if let Some(history) = &history {
        // A history that cannot be kept is no reason to fail.
        let _ = editor.save_history(history);
    }
    Ok(())
}

/// Reads lines up to a whole statement or dot command; `None` at the end of the input.
fn read_statement(editor: &mut DefaultEditor) -> anyhow::Result<Option<String>> {
    let mut statement = String::new();
    loop {
        let prompt = if statement.is_empty() { "sql> " } else { "...> " };
        match editor.readline(prompt) {
            Ok(line) => statement.push_str(&line),
            // Ctrl-C drops what was typed.
            Err(ReadlineError::Interrupted) => statement.clear(),
            Err(ReadlineError::Eof) => return Ok(None),
            Err(error) => return Err(error).context("cannot read from this terminal"),
        }
        let typed = statement.trim();
        if typed.starts_with('.') || is_complete(typed) {
            let typed = typed.to_owned();
            editor.add_history_entry(&typed)?;
            return Ok(Some(typed));
        }
        if typed.is_empty() {
            statement.clear();
        } else {
            statement.push('\n');
        }
    }
}

/// Where the history is kept, by the rules for a user's state; created for this user alone.
fn history_file() -> Option<PathBuf> {
    let absolute = |path: PathBuf| path.is_absolute().then_some(path);
    let state = env::var_os("XDG_STATE_HOME").map(PathBuf::from).and_then(absolute).or_else(|| {
        let home = env::var_os("HOME").map(PathBuf::from).and_then(absolute)?;
        Some(home.join(".local/state"))
    })?;
    let dir = state.join("microctl");
    fs::create_dir_all(&dir).ok()?;
    Some(dir.join("sql_history"))
}
