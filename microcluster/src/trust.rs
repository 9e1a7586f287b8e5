//! Who is trusted: the members' certificates as a watched value. `truststore/` is its cache on disk.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use microcluster_client::{Address, Fingerprint, FingerprintError, MemberLocal, Name};
use tokio::sync::watch;

use crate::state_dir::{FileError, MODE_PUBLIC, read_file, remove_file, sync_directory, write_file};

/// How much of a name its file's name holds; from there on the fingerprint tells members apart.
const STEM_NAME_MAX: usize = 160;

/// One member that is trusted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TrustedMember {
    pub name: Name,
    pub address: Address,
    /// PEM.
    pub certificate: String,
    pub fingerprint: Fingerprint,
}

/// All members that are trusted, as they were at one time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct TrustSet(HashMap<Fingerprint, TrustedMember>);

/// The trusted members now. Clones watch the same value.
#[derive(Clone, Debug)]
pub(crate) struct Trust(Arc<watch::Sender<Arc<TrustSet>>>);

impl TrustedMember {
    pub fn new(member: MemberLocal) -> Result<Self, FingerprintError> {
        let fingerprint = Fingerprint::of_pem(&member.certificate)?;
        let MemberLocal { name, address, certificate } = member;
        Ok(TrustedMember { name, address, certificate, fingerprint })
    }

    pub fn public(&self) -> MemberLocal {
        MemberLocal { name: self.name.clone(), address: self.address, certificate: self.certificate.clone() }
    }
}

impl TrustSet {
    pub fn get(&self, fingerprint: &Fingerprint) -> Option<&TrustedMember> {
        self.0.get(fingerprint)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn iter(&self) -> impl Iterator<Item = &TrustedMember> {
        self.0.values()
    }

    /// Replaces the cache on disk by this set.
    pub fn store(&self, truststore: &Path) -> Result<(), FileError> {
        for member in self.iter() {
            let path = truststore.join(format!("{}.yaml", stem(member)));
            let text = serde_norway::to_string(&member.public()).map_err(|e| FileError {
                action: "write",
                path: path.clone(),
                source: std::io::Error::other(e),
            })?;
            if read_file(&path)?.as_deref() != Some(&text) {
                write_file(&path, text.as_bytes(), MODE_PUBLIC)?;
            }
        }
        let error = |source| FileError { action: "read", path: truststore.into(), source };
        for entry in fs::read_dir(truststore).map_err(error)? {
            let path = entry.map_err(error)?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let is_current =
                name.strip_suffix(".yaml").is_some_and(|name| self.iter().any(|member| stem(member) == name));
            if !is_current {
                remove_file(&path)?;
            }
        }
        sync_directory(truststore)
    }

    /// Reads the cache on disk. A file that cannot be read is left out: the table is the truth, and
    /// the other members are enough to get it.
    pub fn load(truststore: &Path) -> Result<TrustSet, FileError> {
        let error = |source| FileError { action: "read", path: truststore.into(), source };
        let mut members = Vec::new();
        for entry in fs::read_dir(truststore).map_err(error)? {
            let path = entry.map_err(error)?.path();
            if path.extension().is_none_or(|extension| extension != "yaml") {
                continue;
            }
            let Some(text) = read_file(&path)? else {
                continue;
            };
            let parsed = serde_norway::from_str::<MemberLocal>(&text)
                .map_err(|e| e.to_string())
                .and_then(|member| TrustedMember::new(member).map_err(|e| e.to_string()));
            match parsed {
                Ok(member) => members.push(member),
                Err(reason) => {
                    tracing::warn!(path = %path.display(), reason, "ignoring a damaged file of the trust store");
                }
            }
        }
        Ok(members.into_iter().collect())
    }
}

/// The name of a member's file. The longest names would not fit a file's name.
fn stem(member: &TrustedMember) -> String {
    let name = member.name.as_str();
    match name.get(..STEM_NAME_MAX) {
        Some(start) => format!("{start}-{}", member.fingerprint),
        None => name.to_owned(),
    }
}

impl FromIterator<TrustedMember> for TrustSet {
    fn from_iter<I: IntoIterator<Item = TrustedMember>>(members: I) -> Self {
        TrustSet(members.into_iter().map(|member| (member.fingerprint, member)).collect())
    }
}

impl Trust {
    pub fn new(members: TrustSet) -> Self {
        Trust(Arc::new(watch::Sender::new(Arc::new(members))))
    }

    /// The set as it is now.
    pub fn current(&self) -> Arc<TrustSet> {
        self.0.borrow().clone()
    }

    /// Replaces the set; says whether that changed it.
    pub fn replace(&self, members: TrustSet) -> bool {
        self.0.send_if_modified(|current| {
            let changed = **current != members;
            if changed {
                *current = Arc::new(members);
            }
            changed
        })
    }

    /// Wakes up when the set changes.
    pub fn watch(&self) -> watch::Receiver<Arc<TrustSet>> {
        self.0.subscribe()
    }

    /// Whether it is a member's certificate.
    pub fn is_trusted(&self, fingerprint: &Fingerprint) -> bool {
        self.0.borrow().get(fingerprint).is_some()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::tls::{Generate, KeyPair};

    fn member(name: &str) -> TrustedMember {
        let pair = KeyPair::generate(&Generate { name, addresses: &[] }).unwrap();
        TrustedMember::new(MemberLocal {
            name: name.parse().unwrap(),
            address: "127.0.0.1:9001".parse().unwrap(),
            certificate: pair.certificate.pem,
        })
        .unwrap()
    }

    #[test]
    fn only_members_are_trusted_and_changes_are_seen() {
        let (c1, c2) = (member("c1"), member("c2"));
        let trust = Trust::new([c1.clone()].into_iter().collect());
        assert!(trust.is_trusted(&c1.fingerprint));
        assert!(!trust.is_trusted(&c2.fingerprint));
        assert!(trust.replace([c2.clone()].into_iter().collect()));
        assert!(!trust.replace([c2.clone()].into_iter().collect()), "nothing changed");
        assert!(!trust.is_trusted(&c1.fingerprint));
        assert_eq!(trust.current().get(&c2.fingerprint), Some(&c2));
    }

    #[test]
    fn the_cache_is_replaced_and_a_damaged_file_is_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let old: TrustSet = [member("c1"), member("123")].into_iter().collect();
        old.store(dir.path()).unwrap();
        assert_eq!(TrustSet::load(dir.path()).unwrap(), old);
        let new: TrustSet = [member("c3")].into_iter().collect();
        new.store(dir.path()).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        fs::write(dir.path().join("c4.yaml"), "name: [").unwrap();
        assert_eq!(TrustSet::load(dir.path()).unwrap(), new);
    }
}
