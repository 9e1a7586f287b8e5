//! Who is trusted: the members' certificates as a watched value. `truststore/` is its cache on disk.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use microcluster_client::{Address, Fingerprint, FingerprintError, MemberLocal, Name};
use tokio::sync::watch;

use crate::state_dir::{FileError, MODE_PUBLIC, remove_file, sync_directory, write_file};

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
    pub trusted_as: TrustedAs,
}

/// How far the owner of a certificate is trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TrustedAs {
    /// A member.
    Member,
    /// A joiner that was admitted by its token and is not taken in yet: it is reached by Raft, and learns who the members are.
    Joiner,
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
        Ok(TrustedMember { name, address, certificate, fingerprint, trusted_as: TrustedAs::Member })
    }

    /// The same, as a joiner that is not taken in yet.
    pub fn joiner(mut self) -> Self {
        self.trusted_as = TrustedAs::Joiner;
        self
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

    /// The members, without joiners that are not taken in yet.
    pub fn members(&self) -> impl Iterator<Item = &TrustedMember> {
        self.iter().filter(|member| member.trusted_as == TrustedAs::Member)
    }

    /// Replaces the cache on disk by the members of this set. It does not say of anybody that they are joining: those are in the table.
    pub fn store(&self, truststore: &Path) -> Result<(), FileError> {
        for member in self.members() {
            let path = truststore.join(format!("{}.yaml", stem(member)));
            let text = serde_norway::to_string(&member.public()).map_err(|e| FileError {
                action: "write",
                path: path.clone(),
                source: std::io::Error::other(e),
            })?;
            // What cannot be read, and be it no text, is replaced.
            if !fs::read(&path).is_ok_and(|found| found == text.as_bytes()) {
                write_file(&path, text.as_bytes(), MODE_PUBLIC)?;
            }
        }
        let error = |source| FileError { action: "read", path: truststore.into(), source };
        for entry in fs::read_dir(truststore).map_err(error)? {
            let path = entry.map_err(error)?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let is_current =
                name.strip_suffix(".yaml").is_some_and(|name| self.members().any(|member| stem(member) == name));
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
            let content = match fs::read(&path) {
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
                read => read.map_err(|source| FileError { action: "read", path: path.clone(), source })?,
            };
            let parsed = serde_norway::from_slice::<MemberLocal>(&content)
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

    /// Whether it is the certificate of a member or of a joiner.
    pub fn is_trusted(&self, fingerprint: &Fingerprint) -> bool {
        self.trusted_as(fingerprint).is_some()
    }

    /// How far the owner of a certificate is trusted.
    pub fn trusted_as(&self, fingerprint: &Fingerprint) -> Option<TrustedAs> {
        self.0.borrow().get(fingerprint).map(|member| member.trusted_as)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::fuzz::{almost, cases};
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

    #[test]
    fn a_joiner_is_trusted_less_and_is_not_in_the_cache() {
        let (member, joiner) = (member("c1"), member("c2").joiner());
        let trust = Trust::new([member.clone(), joiner.clone()].into_iter().collect());
        assert!(trust.is_trusted(&joiner.fingerprint));
        assert_eq!(trust.trusted_as(&joiner.fingerprint), Some(TrustedAs::Joiner));
        assert_eq!(trust.trusted_as(&member.fingerprint), Some(TrustedAs::Member));
        let dir = tempfile::tempdir().unwrap();
        trust.current().store(dir.path()).unwrap();
        let loaded = TrustSet::load(dir.path()).unwrap();
        assert_eq!(loaded, [member].into_iter().collect());
    }

    /// YAML that grows when its references are followed, and YAML without a bottom.
    #[test]
    fn a_file_that_would_grow_without_end_is_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
        for level in 1..30 {
            let below = format!("*a{}", level - 1);
            bomb.push_str(&format!("a{level}: &a{level} [{}]\n", vec![below; 10].join(", ")));
        }
        bomb.push_str("name: c1\naddress: 127.0.0.1:9001\ncertificate: *a29\n");
        fs::write(dir.path().join("c1.yaml"), bomb).unwrap();
        fs::write(dir.path().join("c2.yaml"), "[".repeat(100_000)).unwrap();
        assert!(TrustSet::load(dir.path()).unwrap().is_empty());
    }

    /// What the test below has found: a file that is no text kept the cache from being written anew.
    #[test]
    fn a_file_that_is_no_text_is_left_out_and_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let (good, other) = (member("c1"), member("c2"));
        let mut damaged = serde_norway::to_string(&other.public()).unwrap().into_bytes();
        damaged[0] = 0xff;
        let path = dir.path().join("c2.yaml");
        fs::write(&path, &damaged).unwrap();
        [good.clone()].into_iter().collect::<TrustSet>().store(dir.path()).unwrap();
        assert!(!path.exists(), "it is removed with the others that are not trusted");
        fs::write(&path, &damaged).unwrap();
        assert_eq!(TrustSet::load(dir.path()).unwrap(), [good.clone()].into_iter().collect());
        let both: TrustSet = [good, other].into_iter().collect();
        both.store(dir.path()).unwrap();
        assert_eq!(TrustSet::load(dir.path()).unwrap(), both, "it is replaced");
    }

    proptest! {
        #![proptest_config(cases(256))]

        /// One file cannot keep the others from being read.
        #[test]
        fn any_file_is_a_member_or_is_left_out(
            damaged in prop_oneof![
                almost(Just(serde_norway::to_string(&member("c2").public()).unwrap().into_bytes())),
                proptest::collection::vec(any::<u8>(), 0..200),
                "[a-z:{}\\[\\]&*!|>'\" \n-]{0,80}".prop_map(String::into_bytes),
            ],
        ) {
            let dir = tempfile::tempdir().unwrap();
            let good = member("c1");
            [good.clone()].into_iter().collect::<TrustSet>().store(dir.path()).unwrap();
            fs::write(dir.path().join("c2.yaml"), damaged).unwrap();
            let loaded = TrustSet::load(dir.path()).unwrap();
            prop_assert_eq!(loaded.get(&good.fingerprint), Some(&good));
            prop_assert!(loaded.iter().count() <= 2);
            // And does not keep the cache from being written anew.
            loaded.store(dir.path()).unwrap();
            prop_assert_eq!(TrustSet::load(dir.path()).unwrap(), loaded);
        }
    }
}
