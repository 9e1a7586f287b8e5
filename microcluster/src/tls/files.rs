//! Key pairs in the state directory: read, and replaced so that after a crash they are whole.

use std::fs;
use std::path::PathBuf;

use microcluster_client::Secret;
use serde::{Deserialize, Serialize};

use super::key_pair::{KeyPair, KeyPairError, SharedPair};
use crate::state_dir::{
    FileError, KeyPairPaths, MODE_PUBLIC, MODE_SECRET, StateDir, read_file, remove_file, sync_directory, write_file,
};

/// A key pair cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoadError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("{} cannot be used", .path.display())]
    KeyPair { path: PathBuf, source: KeyPairError },
    #[error("there is {} and no {}; give both, or none to have a pair made", .present.display(), .missing.display())]
    Half { present: PathBuf, missing: PathBuf },
}

/// A replacement under way. It is stored as one file before the files of the pair are touched: a crash
/// between them is repaired from it.
#[derive(Serialize, Deserialize)]
struct Replacement {
    certificate: String,
    key: Secret,
    /// Empty for none.
    authority: String,
    /// Whether it is marked to have come from the cluster.
    is_shared: bool,
}

/// The key pair of that name, none when there is none.
pub(crate) fn load(dir: &StateDir, name: &str) -> Result<Option<KeyPair>, LoadError> {
    // Not in the middle of a replacement.
    let _installing = dir.installing();
    let KeyPairPaths { certificate, key, .. } = dir.key_pair(name);
    match (read_file(&certificate)?, read_file(&key)?) {
        (None, None) => Ok(None),
        (Some(cert_pem), Some(key_pem)) => KeyPair::parse(&cert_pem, &Secret::new(key_pem))
            .map(Some)
            .map_err(|source| LoadError::KeyPair { path: certificate, source }),
        (Some(_), None) => Err(LoadError::Half { present: certificate, missing: key }),
        (None, Some(_)) => Err(LoadError::Half { present: key, missing: certificate }),
    }
}

/// Replaces the key pair of that name, unless it is this one already; says whether it did. One `from_cluster`
/// is removed when the daemon leaves the cluster.
pub(crate) fn install(dir: &StateDir, name: &str, new: &SharedPair, from_cluster: bool) -> Result<bool, FileError> {
    let _installing = dir.installing();
    let paths = dir.key_pair(name);
    let replacement = Replacement {
        certificate: new.pair.certificate.pem.clone(),
        key: new.pair.key_pem().clone(),
        authority: new.authority.clone(),
        // The cluster's own certificate goes with the cluster without a mark.
        is_shared: from_cluster && name != "cluster",
    };
    if replacement.is_done(&paths) {
        return Ok(false);
    }
    let unwritable =
        |e: serde_json::Error| FileError { action: "write", path: paths.pending.clone(), source: e.into() };
    let json = serde_json::to_vec(&replacement).map_err(unwritable)?;
    write_file(&paths.pending, &json, MODE_SECRET)?;
    replacement.carry_out(&paths)?;
    Ok(true)
}

/// Finishes the replacements that a crash interrupted.
pub(crate) fn finish_installs(dir: &StateDir) -> Result<(), FileError> {
    for name in dir.pending_key_pairs()? {
        let paths = dir.key_pair(&name);
        let Some(json) = read_file(&paths.pending)? else { continue };
        let unreadable = |e: serde_json::Error| FileError {
            action: "use",
            path: paths.pending.clone(),
            // Without the parser's words: they may quote the key.
            source: std::io::Error::other(format!("it is damaged at column {}", e.column())),
        };
        let replacement: Replacement = serde_json::from_str(&json).map_err(unreadable)?;
        tracing::info!(name, "finishing the replacement of a certificate that was interrupted");
        replacement.carry_out(&paths)?;
    }
    Ok(())
}

impl Replacement {
    fn is_done(&self, paths: &KeyPairPaths) -> bool {
        // What cannot be read is replaced.
        let holds = |path, text: &str| match fs::read(path) {
            Ok(bytes) => bytes == text.as_bytes(),
            Err(_) => text.is_empty(),
        };
        !paths.pending.exists()
            && paths.shared.exists() == self.is_shared
            && holds(&paths.certificate, &self.certificate)
            && holds(&paths.key, self.key.expose())
            && holds(&paths.authority, &self.authority)
    }

    fn carry_out(&self, paths: &KeyPairPaths) -> Result<(), FileError> {
        // A mark without its pair is harmless, a pair without its mark would outlive the cluster.
        if self.is_shared {
            write_file(&paths.shared, b"", MODE_PUBLIC)?;
        } else {
            remove_file(&paths.shared)?;
        }
        write_file(&paths.key, self.key.expose().as_bytes(), MODE_SECRET)?;
        write_file(&paths.certificate, self.certificate.as_bytes(), MODE_PUBLIC)?;
        if self.authority.is_empty() {
            remove_file(&paths.authority)?;
        } else {
            write_file(&paths.authority, self.authority.as_bytes(), MODE_PUBLIC)?;
        }
        remove_file(&paths.pending)?;
        match paths.pending.parent() {
            Some(directory) => sync_directory(directory),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::tls::Generate;

    fn made(name: &str, authority: &str) -> SharedPair {
        let pair = KeyPair::generate(&Generate { name, addresses: &[] }).unwrap();
        SharedPair { pair, authority: authority.into() }
    }

    #[test]
    fn a_pair_is_replaced_once() {
        let parent = tempfile::tempdir().unwrap();
        let dir = StateDir::open(parent.path()).unwrap();
        assert!(load(&dir, "cluster").unwrap().is_none());
        let (one, two) = (made("one", "authority"), made("two", ""));
        assert!(install(&dir, "cluster", &one, true).unwrap());
        assert!(!install(&dir, "cluster", &one, true).unwrap(), "it is there already");
        assert_eq!(load(&dir, "cluster").unwrap().unwrap().fingerprint(), one.pair.fingerprint());
        assert_eq!(read_file(&dir.key_pair("cluster").authority).unwrap().unwrap(), "authority");
        assert!(install(&dir, "cluster", &two, true).unwrap());
        assert_eq!(read_file(&dir.key_pair("cluster").authority).unwrap(), None);
        assert!(install(&dir, "metrics", &one, false).unwrap());
        dir.reset().unwrap();
        assert!(load(&dir, "cluster").unwrap().is_none());
        assert!(load(&dir, "metrics").unwrap().is_some(), "it is this machine's own");
        assert!(install(&dir, "metrics", &one, true).unwrap(), "now it is the cluster's");
        dir.reset().unwrap();
        assert!(load(&dir, "metrics").unwrap().is_none());
    }

    /// Every state that a crash can leave between the first file and the last.
    #[test]
    fn a_replacement_that_a_crash_interrupted_is_finished() {
        let (old, new) = (made("old", "authority"), made("new", ""));
        let texts = |of: &SharedPair| [of.pair.certificate.pem.clone(), of.pair.key_pem().expose().to_owned()];
        for step in 0..3 {
            let parent = tempfile::tempdir().unwrap();
            let dir = StateDir::open(parent.path()).unwrap();
            install(&dir, "server", &old, false).unwrap();
            let [certificate, key] = texts(&new);
            let json = serde_json::json!({"certificate": certificate, "key": key, "authority": "", "is_shared": false});
            let paths = dir.key_pair("server");
            fs::write(&paths.pending, json.to_string()).unwrap();
            if step > 0 {
                fs::write(&paths.key, key).unwrap();
            }
            if step > 1 {
                fs::write(&paths.certificate, certificate).unwrap();
            }
            finish_installs(&dir).unwrap();
            assert_eq!(load(&dir, "server").unwrap().unwrap().fingerprint(), new.pair.fingerprint(), "step {step}");
            assert!(!paths.pending.exists() && !paths.authority.exists());
        }
    }

    #[test]
    fn half_a_pair_and_a_pair_that_does_not_fit_are_errors() {
        let parent = tempfile::tempdir().unwrap();
        let dir = StateDir::open(parent.path()).unwrap();
        let (one, two) = (made("one", ""), made("two", ""));
        let paths = dir.key_pair("server");
        fs::write(&paths.key, one.pair.key_pem().expose()).unwrap();
        let refused = load(&dir, "server").unwrap_err().to_string();
        assert!(refused.contains("server.key") && refused.contains("server.crt"), "{refused}");
        fs::write(&paths.certificate, &two.pair.certificate.pem).unwrap();
        let refused = load(&dir, "server").unwrap_err();
        assert!(matches!(refused, LoadError::KeyPair { source: KeyPairError::Mismatch(_), .. }), "{refused}");
    }
}
