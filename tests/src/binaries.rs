//! Where the programs under test are.

use std::path::PathBuf;

/// The program of that name, from the build directory that this test was built into.
pub(crate) fn binary(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("the path of this test");
    // The test is `target/PROFILE/deps/NAME-HASH`, the programs are in `target/PROFILE`.
    let directory = test.parent().and_then(|deps| deps.parent()).expect("the build directory");
    let path = directory.join(name);
    assert!(path.is_file(), "{} is missing: run `cargo build --release` first", path.display());
    path
}
