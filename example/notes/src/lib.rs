//! The product: what makes its daemon another one than `microclusterd`.

use std::path::PathBuf;

use microcluster::{Builder, Daemon};

/// The schema updates, oldest first. A new version of the product adds to the end.
const SCHEMA: [&str; 1] = ["CREATE TABLE notes (
    id INTEGER PRIMARY KEY,
    text TEXT NOT NULL,
    at TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP
) STRICT"];

/// The daemon of the product, with its state in a directory.
pub fn daemon(state_dir: PathBuf) -> Builder {
    Daemon::builder(state_dir).version(env!("CARGO_PKG_VERSION")).schema(SCHEMA).api_extensions(["notes"])
}
