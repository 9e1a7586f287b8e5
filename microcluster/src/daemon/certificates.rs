//! The key pairs in the state directory: made, stored, read, and read again.

use std::path::Path;

use microcluster_client::{Name, Secret};

use super::CoreShared;
use crate::state::{InitError, State};
use crate::state_dir::{FileError, MODE_PUBLIC, MODE_SECRET, StateDir, read_file, write_file};
use crate::tasks::blocking;
use crate::tls::{Generate, KeyPair, KeyPairError};

/// A name for the first certificate, when the machine's own is none.
const NAME_UNKNOWN: &str = "microcluster";

/// A key pair cannot be read or stored.
#[derive(Debug, thiserror::Error)]
pub(super) enum LoadError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("{} cannot be used", .path)]
    KeyPair { path: String, source: KeyPairError },
}

/// The key pair of that name, none when there is none.
pub(super) fn load(dir: &StateDir, name: &str) -> Result<Option<KeyPair>, LoadError> {
    let (cert_path, key_path) = dir.key_pair(name);
    let (Some(cert), Some(key)) = (read_file(&cert_path)?, read_file(&key_path)?) else {
        return Ok(None);
    };
    parse(&cert_path, &cert, key).map(Some)
}

/// Stores a key pair. The key comes first: a certificate without its key would be no pair after a crash.
pub(super) fn store(dir: &StateDir, name: &str, pair: &KeyPair) -> Result<(), FileError> {
    let (cert_path, key_path) = dir.key_pair(name);
    write_file(&key_path, pair.key_pem().expose().as_bytes(), MODE_SECRET)?;
    write_file(&cert_path, pair.certificate.pem.as_bytes(), MODE_PUBLIC)
}

/// This daemon's own key pair, made at the first start.
pub(super) fn load_or_make_server(dir: &StateDir, machine: &str) -> Result<KeyPair, LoadError> {
    match load(dir, "server") {
        Ok(Some(pair)) => return Ok(pair),
        Ok(None) => {}
        // A crash between the two files leaves a new key beside the certificate made before.
        Err(LoadError::KeyPair { source: KeyPairError::Mismatch(e), .. }) => {
            tracing::warn!(error = %e, "the server certificate does not fit its key; a new pair is made");
        }
        Err(e) => return Err(e),
    }
    let name = if machine.parse::<Name>().is_ok() { machine } else { NAME_UNKNOWN };
    let made = KeyPair::generate(&Generate { name, addresses: &[] });
    let (cert_path, _) = dir.key_pair("server");
    let pair = made.map_err(|source| LoadError::KeyPair { path: cert_path.display().to_string(), source })?;
    store(dir, "server", &pair)?;
    Ok(pair)
}

/// Makes sure that this daemon's certificate carries its name as a member. One that a daemon made is
/// made anew; one that an operator brought is not touched.
pub(super) async fn ensure_server_carries(state: &State, name: &Name) -> Result<KeyPair, InitError> {
    let current = state.server_certificate().current();
    if current.certificate.carries(name.as_str()) {
        return Ok(current);
    }
    let (path, _) = state.dir().key_pair("server");
    if !current.certificate.is_generated {
        let names = current.certificate.names().join(", ");
        let (path, name) = (path.display().to_string(), name.clone());
        return Err(InitError::CertificateName { path, name, names });
    }
    let (dir, own) = (state.dir().clone(), name.clone());
    let pair = blocking("server certificate", move || -> Result<KeyPair, InitError> {
        let pair = KeyPair::generate(&Generate { name: own.as_str(), addresses: &[] })?;
        store(&dir, "server", &pair)?;
        Ok(pair)
    })
    .await??;
    state.server_certificate().set(pair.clone());
    Ok(pair)
}

impl CoreShared {
    /// Reads the certificates again. One that cannot be used is left aside: the one in use goes on.
    pub(super) async fn reload_certificates(&self) {
        let dir = self.state.dir().clone();
        let loaded = blocking("certificates", move || (load(&dir, "server"), load(&dir, "cluster"))).await;
        let Ok((server, cluster)) = loaded else {
            return;
        };
        let member = self.state.joined_node();
        if let Some(pair) = usable("server", server) {
            let is_other = pair.fingerprint() != self.state.server_certificate().current().fingerprint();
            if member.is_ok() && is_other {
                tracing::error!(
                    "server.crt has changed and is not used: the other members know this one by the certificate that it joined with"
                );
            } else {
                self.state.server_certificate().set(pair);
            }
        }
        let Ok(node) = member else {
            return;
        };
        if let Some(pair) = usable("cluster", cluster) {
            node.cluster_certificate.set(pair);
        }
        let identity = self.state.server_certificate().current().identity();
        let fingerprint = node.cluster_certificate.current().fingerprint();
        if let Err(e) = node.peers.reload(&identity, fingerprint) {
            tracing::error!(error = %e, "the certificates cannot be used for connections to other members");
        }
        tracing::info!("the certificates were read again");
    }
}

fn usable(name: &str, loaded: Result<Option<KeyPair>, LoadError>) -> Option<KeyPair> {
    match loaded {
        Ok(Some(pair)) => Some(pair),
        Ok(None) => None,
        Err(e) => {
            tracing::error!(name, error = %crate::error::Chain(&e), "the certificate in use is kept");
            None
        }
    }
}

fn parse(path: &Path, cert: &str, key: String) -> Result<KeyPair, LoadError> {
    KeyPair::parse(cert, &Secret::new(key))
        .map_err(|source| LoadError::KeyPair { path: path.display().to_string(), source })
}
