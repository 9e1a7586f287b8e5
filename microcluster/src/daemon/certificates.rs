//! This daemon's own certificate: made, given by an operator, and read again.

use microcluster_client::{Name, Timestamp};

use super::CoreShared;
use crate::error::Chain;
use crate::state::{InitError, Lifecycle, SetServerError, State};
use crate::state_dir::StateDir;
use crate::tasks::blocking;
use crate::tls::{Generate, KeyPair, LoadError, SharedPair, install, load};

/// A name for the first certificate, when the machine's own is none.
const NAME_UNKNOWN: &str = "microcluster";

/// This daemon's own key pair, made at the first start. One that an operator brought and that cannot be used is an
/// error: it is not replaced by one that nobody asked for.
pub(super) fn load_or_make_server(dir: &StateDir, machine: &str) -> Result<KeyPair, LoadError> {
    if let Some(pair) = load(dir, "server")? {
        return Ok(pair);
    }
    let name = if machine.parse::<Name>().is_ok() { machine } else { NAME_UNKNOWN };
    let path = dir.key_pair("server").certificate;
    let pair =
        KeyPair::generate(&Generate { name, addresses: &[] }).map_err(|source| LoadError::KeyPair { path, source })?;
    install(dir, "server", &SharedPair::own(pair.clone()), false)?;
    Ok(pair)
}

/// Whether this daemon's certificate carries its name as a member and is valid now, or can be made anew so that it does: one that
/// an operator brought is not touched.
pub(super) fn check_server_can_carry(state: &State, name: &Name) -> Result<(), InitError> {
    let current = state.server_certificate().current();
    if current.certificate.is_generated {
        return Ok(());
    }
    let path = state.dir().key_pair("server").certificate.display().to_string();
    if let Err(reason) = current.certificate.check_dates(Timestamp::now()) {
        return Err(InitError::CertificateDates { path, reason });
    }
    if current.certificate.carries(name.as_str()) {
        return Ok(());
    }
    let names = current.certificate.names().join(", ");
    Err(InitError::CertificateName { path, name: name.clone(), names })
}

/// Makes sure that this daemon's certificate carries its name as a member and is valid now. One that a daemon made is
/// made anew; one that an operator brought is not touched.
pub(super) async fn ensure_server_carries(state: &State, name: &Name) -> Result<KeyPair, InitError> {
    let current = state.server_certificate().current();
    let dates = current.certificate.check_dates(Timestamp::now());
    if current.certificate.carries(name.as_str()) && dates.is_ok() {
        return Ok(current);
    }
    check_server_can_carry(state, name)?;
    let (dir, own) = (state.dir().clone(), name.clone());
    let pair = blocking("server certificate", move || -> Result<KeyPair, InitError> {
        let pair = KeyPair::generate(&Generate { name: own.as_str(), addresses: &[] })?;
        install(&dir, "server", &SharedPair::own(pair.clone()), false)?;
        Ok(pair)
    })
    .await??;
    state.server_certificate().set(pair.clone());
    Ok(pair)
}

impl CoreShared {
    /// Takes the key pair that an operator brings, while this daemon belongs to no cluster.
    pub(super) async fn set_server_certificate(&self, new: SharedPair) -> Result<(), SetServerError> {
        match self.state.lifecycle() {
            Lifecycle::Uninitialised => {}
            Lifecycle::Member(node) => return Err(SetServerError::Member { name: node.name.clone() }),
            other => return Err(other.not_now().into()),
        }
        let (dir, own) = (self.state.dir().clone(), new.clone());
        blocking("server certificate", move || install(&dir, "server", &own, false)).await??;
        tracing::info!(fingerprint = %new.pair.fingerprint(), "the server certificate was replaced");
        self.state.server_certificate().set(new.pair);
        Ok(())
    }

    /// Reads the daemon's own certificate again. One that cannot be used is left aside: the one in use goes on.
    pub(super) async fn reload_server_certificate(&self) {
        let dir = self.state.dir().clone();
        let Ok(loaded) = blocking("certificates", move || load(&dir, "server")).await else {
            return;
        };
        let member = self.state.joined_node();
        match loaded {
            Ok(Some(pair)) => {
                let is_other = pair.fingerprint() != self.state.server_certificate().current().fingerprint();
                if member.is_ok() && is_other {
                    tracing::error!(
                        "server.crt has changed and is not used: the other members know this one by the certificate that it joined with"
                    );
                } else {
                    self.state.server_certificate().set(pair);
                }
            }
            Ok(None) => tracing::error!("server.crt is gone; the certificate in use is kept"),
            Err(e) => tracing::error!(error = %Chain(&e), "server.crt cannot be used; the certificate in use is kept"),
        }
    }

    /// Reads the other certificates again. It may wait for a server that is being closed.
    pub(super) async fn reload_shared_certificates(&self) {
        if let Ok(node) = self.state.joined_node() {
            match node.restore_certificates().await {
                Ok(true) => tracing::warn!(
                    "a certificate in the state directory was not the one of the cluster and was replaced by that; \
                     to change it on all members use `microctl certificates set`"
                ),
                Ok(false) => {}
                Err(e) => tracing::error!(error = %Chain(&e), "a certificate of the cluster is not in place here"),
            }
        }
        self.servers.reload_certificates().await;
        tracing::info!("the certificates were read again");
    }
}
