//! Certificates: those that nobody trusts, and those that an operator brings.

use microcluster_client::{Identity, KeyPair, Secret};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer};
use time::{Duration, OffsetDateTime};

/// The certificate of somebody who is no member, for a name that a member may have.
#[must_use]
pub fn stranger(name: &str) -> Identity {
    let made = rcgen::generate_simple_self_signed([name.to_owned()]).expect("a certificate");
    Identity::new(made.cert.pem(), made.signing_key.serialize_pem())
}

/// A key pair that signs itself, as an operator may bring one.
#[must_use]
pub fn self_signed(name: &str) -> KeyPair {
    let Identity { cert_pem, key_pem } = stranger(name);
    KeyPair { cert: cert_pem, key: key_pem, ca: String::new() }
}

/// Somebody who signs certificates.
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer<'static, rcgen::KeyPair>,
    pem: String,
}

impl Authority {
    /// A new one.
    #[must_use]
    #[allow(clippy::new_without_default)]
    pub fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = rcgen::KeyPair::generate().expect("a key");
        let pem = params.self_signed(&key).expect("a certificate").pem();
        Authority { issuer: Issuer::new(params, key), pem }
    }

    /// Its own certificate, PEM.
    #[must_use]
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// A key pair for a name, with this authority beside it, valid between two days counted from now.
    #[must_use]
    pub fn sign(&self, name: &str, from_day: i64, to_day: i64) -> KeyPair {
        let mut params = CertificateParams::new([name.to_owned()]).expect("a name");
        params.not_before = OffsetDateTime::now_utc() + Duration::days(from_day);
        params.not_after = OffsetDateTime::now_utc() + Duration::days(to_day);
        let key = rcgen::KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        KeyPair { cert: certificate.pem(), key: Secret::new(key.serialize_pem()), ca: self.pem.clone() }
    }
}
