//! `notesd STATE_DIR`: runs the product's daemon until a signal ends it.

use anyhow::Context;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let state_dir = std::env::args_os().nth(1).context("usage: notesd STATE_DIR")?;
    Ok(notes::daemon(state_dir.into()).run().await?)
}
