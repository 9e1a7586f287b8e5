//! The certificates that all members share: the cluster's own and those of additional servers. A table is their truth,
//! the files of a member are what is in place of it.

use std::collections::BTreeMap;
use std::time::Duration;

use http::Method;
use microcluster_client::{self as client, CertificateExpiry, Client, Secret};
use rusqlite::{Connection, Row};

use super::node::Node;
use crate::db::{self, Consistency, Transaction};
use crate::state_dir::{FileError, StateDir, read_file};
use crate::tasks::{TaskLost, blocking};
use crate::tls::{Certificate, KeyPair, KeyPairError, SharedPair, install};

/// The name of the cluster's own certificate.
pub(crate) const CLUSTER: &str = "cluster";

/// How long another member may take to put a new certificate in place. One that does not answer learns of it from the log.
const TELL_TIMEOUT: Duration = Duration::from_secs(1);

/// One row of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CertificateRow {
    /// `cluster`, or the name of an additional server.
    pub name: String,
    /// PEM, with those behind it that lead to the authority.
    pub certificate: String,
    pub key: Secret,
    /// PEM, empty for none.
    pub authority: String,
}

/// A certificate of the table could not be put in place here. It is tried again.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InstallError {
    #[error("cannot read the certificates that the members share")]
    Database(#[from] db::Error),
    #[error("the certificate {name} of the cluster cannot be used")]
    KeyPair { name: String, source: KeyPairError },
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Lost(#[from] TaskLost),
}

impl CertificateRow {
    pub fn new(name: &str, shared: &SharedPair) -> Self {
        CertificateRow {
            name: name.into(),
            certificate: shared.pair.certificate.pem.clone(),
            key: shared.pair.key_pem().clone(),
            authority: shared.authority.clone(),
        }
    }

    fn read(&self) -> Result<SharedPair, InstallError> {
        let pair = KeyPair::parse(&self.certificate, &self.key)
            .map_err(|source| InstallError::KeyPair { name: self.name.clone(), source })?;
        Ok(SharedPair { pair, authority: self.authority.clone() })
    }
}

/// All rows. An empty list when this replica has not got the table yet.
pub(crate) fn all(db: &Connection) -> rusqlite::Result<Vec<CertificateRow>> {
    let has_table = "SELECT count(*) FROM sqlite_schema WHERE name = 'core_certificates'";
    if db.query_row(has_table, (), |row| row.get::<_, i64>(0))? == 0 {
        return Ok(Vec::new());
    }
    let mut statement = db.prepare_cached("SELECT name, certificate, key, authority FROM core_certificates")?;
    statement.query_map((), from_row)?.collect()
}

/// Writes a row in the place of the one with that name.
pub(crate) fn put(tx: &Transaction<'_>, row: &CertificateRow) -> Result<(), db::Error> {
    let values = (row.name.as_str(), row.certificate.as_str(), row.key.expose(), row.authority.as_str());
    tx.execute(PUT, values).map(|_| ())
}

impl Node {
    /// Replaces a certificate on all members. When this returns it is in place on those that answered in time; the others
    /// have it as soon as they have the log.
    pub async fn set_certificate(&self, name: &str, shared: &SharedPair) -> Result<(), InstallError> {
        let row = CertificateRow::new(name, shared);
        let values = (row.name, row.certificate, row.key.into_string(), row.authority);
        self.db.execute(PUT, values).await?;
        tracing::info!(name, fingerprint = %shared.pair.fingerprint(), "a certificate was replaced");
        self.db.linearize().await?;
        let (installed, ()) = tokio::join!(self.install_certificates(), self.tell_of_certificates());
        installed.map(|_| ())
    }

    /// Puts what the table holds in place; says whether that changed anything.
    pub async fn install_certificates(&self) -> Result<bool, InstallError> {
        let mut installed = self.installed.lock().await;
        let rows = self.db.read(Consistency::Local, all).await?;
        let (mut changed, mut failed) = (false, None);
        for row in rows {
            if installed.contains(&row) {
                continue;
            }
            match self.install(&row).await {
                Ok(now) => {
                    changed |= now;
                    installed.retain(|other| other.name != row.name);
                    installed.push(row);
                }
                Err(e) => failed = Some(e),
            }
        }
        failed.map_or(Ok(changed), Err)
    }

    /// Puts what the table holds in the place of whatever the files hold now.
    pub async fn restore_certificates(&self) -> Result<bool, InstallError> {
        self.installed.lock().await.clear();
        self.install_certificates().await
    }

    /// When the certificates expire that the members share, and those of additional servers that this member alone has.
    pub async fn expiry(&self) -> Vec<CertificateExpiry> {
        let mut expiry = vec![CertificateExpiry {
            name: CLUSTER.into(),
            expires_at: self.cluster_certificate.current().certificate.expires_at,
        }];
        {
            let installed = self.installed.lock().await;
            let additional = installed.iter().filter(|row| row.name != CLUSTER);
            expiry.extend(additional.filter_map(|row| {
                let expires_at = Certificate::parse(&row.certificate).ok()?.expires_at;
                Some(CertificateExpiry { name: row.name.clone(), expires_at })
            }));
        }
        let dir = self.dir.clone();
        // Who has them open says so when one cannot be read.
        let local = blocking("local certificates", move || local_expiry(&dir)).await.unwrap_or_default();
        for certificate in local {
            if !expiry.iter().any(|shared| shared.name == certificate.name) {
                expiry.push(certificate);
            }
        }
        expiry
    }

    /// The certificates of additional servers, as a joiner is told of them.
    pub(super) async fn additional_certificates(&self) -> Result<BTreeMap<String, client::KeyPair>, db::Error> {
        let rows = self.db.read(Consistency::Local, all).await?;
        let additional = rows.into_iter().filter(|row| row.name != CLUSTER);
        let public = |row: CertificateRow| client::KeyPair { cert: row.certificate, key: row.key, ca: row.authority };
        Ok(additional.map(|row| (row.name.clone(), public(row))).collect())
    }

    async fn install(&self, row: &CertificateRow) -> Result<bool, InstallError> {
        let shared = row.read()?;
        let (dir, name, own) = (self.dir.clone(), row.name.clone(), shared.clone());
        let changed = blocking("certificate", move || install(&dir, &name, &own, true)).await??;
        // Also where the files were right already: what is served can be older.
        if row.name == CLUSTER && self.cluster_certificate.current().certificate != shared.pair.certificate {
            self.cluster_certificate.set(shared.pair);
        }
        if changed {
            self.certificate_changed.notify_one();
        }
        Ok(changed)
    }

    /// Has the other members put the certificates in place at once.
    async fn tell_of_certificates(&self) {
        let tell = |client: Client| async move { client.query(Method::POST, "/core/internal/certificates", ()).await };
        self.tell_others("a new certificate", TELL_TIMEOUT, tell).await;
    }
}

/// When the certificates expire that are in the state directory for additional servers, by name.
fn local_expiry(dir: &StateDir) -> Vec<CertificateExpiry> {
    let mut names = dir.certificate_names().unwrap_or_default();
    names.sort();
    let expiry = names.into_iter().filter_map(|name| {
        let text = read_file(&dir.key_pair(&name).certificate).ok()??;
        Some(CertificateExpiry { expires_at: Certificate::parse(&text).ok()?.expires_at, name })
    });
    expiry.collect()
}

const PUT: &str = "INSERT INTO core_certificates (name, certificate, key, authority) VALUES (?1, ?2, ?3, ?4) \
                   ON CONFLICT (name) DO UPDATE SET certificate = excluded.certificate, key = excluded.key, \
                   authority = excluded.authority";

fn from_row(row: &Row<'_>) -> rusqlite::Result<CertificateRow> {
    Ok(CertificateRow {
        name: row.get(0)?,
        certificate: row.get(1)?,
        key: Secret::new(row.get::<_, String>(2)?),
        authority: row.get(3)?,
    })
}
