//! A certificate with its private key: made, read from PEM, checked against each other.

use std::net::IpAddr;
use std::sync::Arc;

use microcluster_client::{Fingerprint, Identity, Secret, Timestamp};
use rcgen::{CertificateParams, DnType, DnValue, ExtendedKeyUsagePurpose, KeyUsagePurpose, SanType};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

/// The organisation in certificates made here: it tells them from those that an operator brought.
const ORGANIZATION: &str = "microcluster";
/// How long certificates made here are valid: ten years.
const VALIDITY_DAYS: i64 = 3652;
/// Longest common name that X.509 allows; a longer name stands in the subject alternative name alone.
const COMMON_NAME_MAX: usize = 64;

/// A certificate and its private key that belong together.
#[derive(Clone, Debug)]
pub(crate) struct KeyPair {
    pub certificate: Certificate,
    key_pem: Secret,
    certified: Arc<CertifiedKey>,
}

/// A key pair with the authority that signed it.
#[derive(Clone, Debug)]
pub(crate) struct SharedPair {
    pub pair: KeyPair,
    /// PEM, empty for none.
    pub authority: String,
}

/// A certificate that was read: what the daemon needs to know of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Certificate {
    /// The PEM text it was read from.
    pub pem: String,
    pub fingerprint: Fingerprint,
    pub valid_from: Timestamp,
    pub expires_at: Timestamp,
    /// DNS names of the subject alternative name, else the common name.
    names: Vec<String>,
    /// Whether a microcluster daemon made it, not an operator.
    pub is_generated: bool,
}

/// What to make a key pair for.
pub(crate) struct Generate<'a> {
    pub name: &'a str,
    pub addresses: &'a [IpAddr],
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum CertificateError {
    #[error("there is no certificate in the PEM text: {0}")]
    Pem(String),
    #[error("the certificate is not a valid X.509 certificate: {0}")]
    X509(String),
    /// What it is, and none of what it says: the text is public once it is taken.
    #[error(
        "there is something else than certificates in the PEM text of the certificate: {0}; give the certificate and its chain alone, and the private key apart from them"
    )]
    NotAlone(&'static str),
    #[error(transparent)]
    Dates(#[from] DateError),
}

/// A certificate is not valid at the time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum DateError {
    #[error("the certificate has expired at {at}")]
    Expired { at: Timestamp },
    #[error("the certificate is not valid before {from}")]
    NotYetValid { from: Timestamp },
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum KeyPairError {
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// Without what the PEM parser says: it may quote the text.
    #[error("there is no private key in the PEM text that can be read without a password")]
    Key,
    #[error("the private key cannot be used with the certificate: {0}")]
    Mismatch(rustls::Error),
    #[error("cannot make a key pair: {0}")]
    Generate(#[from] rcgen::Error),
}

impl KeyPair {
    /// Makes an ECDSA P-256 key and a self-signed certificate.
    pub fn generate(request: &Generate<'_>) -> Result<KeyPair, KeyPairError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, ORGANIZATION);
        if request.name.len() <= COMMON_NAME_MAX {
            params.distinguished_name.push(DnType::CommonName, DnValue::Utf8String(request.name.into()));
        }
        params.subject_alt_names.push(SanType::DnsName(request.name.try_into()?));
        params.subject_alt_names.extend(request.addresses.iter().copied().map(SanType::IpAddress));
        let now = time::OffsetDateTime::now_utc();
        // Clocks of members differ a little.
        params.not_before = now - time::Duration::days(1);
        params.not_after = now + time::Duration::days(VALIDITY_DAYS);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = rcgen::KeyPair::generate()?;
        let certificate = params.self_signed(&key)?;
        KeyPair::parse(&certificate.pem(), &Secret::new(key.serialize_pem()))
    }

    /// Reads a key pair and checks that the two belong together.
    pub fn parse(cert_pem: &str, key_pem: &Secret) -> Result<KeyPair, KeyPairError> {
        let certificate = Certificate::parse(cert_pem)?;
        let chain = CertificateDer::pem_slice_iter(cert_pem.as_bytes())
            .collect::<Result<Vec<_>, _>>()
            .map_err(|e| CertificateError::Pem(e.to_string()))?;
        let key = PrivateKeyDer::from_pem_slice(key_pem.expose().as_bytes()).map_err(|_| KeyPairError::Key)?;
        let provider = rustls::crypto::ring::default_provider();
        let certified = CertifiedKey::from_der(chain, key, &provider).map_err(KeyPairError::Mismatch)?;
        Ok(KeyPair { certificate, key_pem: key_pem.clone(), certified: Arc::new(certified) })
    }

    pub fn key_pem(&self) -> &Secret {
        &self.key_pem
    }

    pub fn fingerprint(&self) -> Fingerprint {
        self.certificate.fingerprint
    }

    /// The key pair as what a client presents.
    pub fn identity(&self) -> Identity {
        Identity::new(self.certificate.pem.clone(), self.key_pem.expose())
    }

    /// The certificate, and those after it in the PEM text.
    pub(super) fn chain(&self) -> &[CertificateDer<'static>] {
        &self.certified.cert
    }

    pub fn certified(&self) -> Arc<CertifiedKey> {
        self.certified.clone()
    }
}

impl SharedPair {
    /// A pair that no authority signed.
    pub fn own(pair: KeyPair) -> Self {
        SharedPair { pair, authority: String::new() }
    }
}

impl Certificate {
    /// Reads the first certificate of a PEM text, in which nothing but certificates may be: other members and clients
    /// are shown all of it.
    pub fn parse(pem: &str) -> Result<Certificate, CertificateError> {
        only_certificates(pem)?;
        let der = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|e| CertificateError::Pem(e.to_string()))?;
        let x509 = |e: &dyn std::fmt::Display| CertificateError::X509(e.to_string());
        let (rest, parsed) = X509Certificate::from_der(&der).map_err(|e| x509(&e))?;
        if !rest.is_empty() {
            return Err(CertificateError::X509("there are bytes behind it".into()));
        }
        let date = |date: x509_parser::time::ASN1Time| {
            let date = Timestamp::from_unix_seconds(date.timestamp());
            date.ok_or_else(|| CertificateError::X509("its dates cannot be represented".into()))
        };
        let (valid_from, expires_at) = (date(parsed.validity().not_before)?, date(parsed.validity().not_after)?);
        let texts = |values: &[&str]| values.iter().map(ToString::to_string).collect::<Vec<_>>();
        let alternative = parsed.subject_alternative_name().map_err(|e| x509(&e))?;
        let names = match alternative {
            Some(alternative) => {
                let names = alternative.value.general_names.iter();
                texts(&names.filter_map(dns_name).collect::<Vec<_>>())
            }
            None => {
                let common = parsed.subject().iter_common_name();
                texts(&common.filter_map(|name| name.as_str().ok()).collect::<Vec<_>>())
            }
        };
        let is_generated = parsed.subject().iter_organization().any(|name| name.as_str() == Ok(ORGANIZATION));
        let fingerprint = Fingerprint::of_der(&der);
        Ok(Certificate { pem: pem.to_owned(), fingerprint, valid_from, expires_at, names, is_generated })
    }

    /// Refuses a certificate that has expired, or is not valid yet.
    pub fn check_dates(&self, now: Timestamp) -> Result<(), DateError> {
        if self.expires_at <= now {
            return Err(DateError::Expired { at: self.expires_at });
        }
        if now < self.valid_from {
            return Err(DateError::NotYetValid { from: self.valid_from });
        }
        Ok(())
    }

    /// Whether it was issued for that name.
    pub fn carries(&self, name: &str) -> bool {
        self.names.iter().any(|own| own.eq_ignore_ascii_case(name))
    }

    /// The names it was issued for.
    pub fn names(&self) -> &[String] {
        &self.names
    }
}

/// Refuses a text in which there is a PEM section that is no certificate, above all a private key. The label is looked
/// for where a parser would not: a section that is broken is no less secret.
pub(super) fn only_certificates(pem: &str) -> Result<(), CertificateError> {
    const BEGIN: &str = "-----BEGIN ";
    if pem.to_ascii_uppercase().contains("PRIVATE KEY") {
        return Err(CertificateError::NotAlone("a private key"));
    }
    if pem.split(BEGIN).skip(1).any(|section| !section.starts_with("CERTIFICATE-----")) {
        return Err(CertificateError::NotAlone("a section that is not labelled CERTIFICATE"));
    }
    Ok(())
}

fn dns_name<'a>(name: &GeneralName<'a>) -> Option<&'a str> {
    match name {
        GeneralName::DNSName(name) => Some(name),
        _ => None,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    fn generate(name: &str) -> KeyPair {
        KeyPair::generate(&Generate { name, addresses: &["127.0.0.1".parse().unwrap()] }).unwrap()
    }

    #[test]
    fn a_generated_pair_carries_its_name() {
        let longest = vec!["a".repeat(63); 4].join(".");
        for name in ["c1", "UPPER", "10.0.0.1", "node-1.rack-7", &longest] {
            let pair = generate(name);
            assert!(pair.certificate.carries(name), "{name}: {:?}", pair.certificate.names());
            assert!(!pair.certificate.carries("other"));
            assert!(pair.certificate.is_generated);
            let days = pair.certificate.expires_at.since(Timestamp::now()).unwrap().as_secs() / 86_400;
            assert!((3650..3654).contains(&days), "{days}");
        }
    }

    #[test]
    fn pem_round_trips() {
        let pair = generate("c1");
        let again = KeyPair::parse(&pair.certificate.pem, pair.key_pem()).unwrap();
        assert_eq!(again.certificate, pair.certificate);
        assert_eq!(again.fingerprint(), Fingerprint::of_pem(&pair.certificate.pem).unwrap());
    }

    #[test]
    fn bad_pairs_are_refused() {
        let (one, two) = (generate("one"), generate("two"));
        let parse = |cert: &str, key: &str| KeyPair::parse(cert, &key.into()).unwrap_err();
        let (cert, key) = (&one.certificate.pem, one.key_pem().expose());
        assert!(matches!(parse(cert, two.key_pem().expose()), KeyPairError::Mismatch(_)));
        assert!(matches!(parse("garbage", key), KeyPairError::Certificate(_)));
        assert!(matches!(parse(cert, "garbage"), KeyPairError::Key));
        assert!(matches!(parse(cert, ""), KeyPairError::Key));
        let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        assert!(matches!(parse(broken, key), KeyPairError::Certificate(CertificateError::X509(_))));
        // Both in one file, as some servers want them.
        let other = "-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n";
        let short = key.replace("-----BEGIN PRIVATE", "---BEGIN PRIVATE");
        for both in [format!("{cert}{key}"), format!("{key}{cert}"), format!("{cert}{short}"), format!("{cert}{other}")]
        {
            let refused = parse(&both, key);
            assert!(matches!(refused, KeyPairError::Certificate(CertificateError::NotAlone(_))), "{refused}");
            assert!(!refused.to_string().contains(key.lines().nth(1).unwrap()), "{refused}");
        }
        let chain = format!("one:\n{cert}\ntwo:\n{}", two.certificate.pem);
        assert_eq!(KeyPair::parse(&chain, one.key_pem()).unwrap().chain().len(), 2);
    }

    #[test]
    fn debug_shows_no_key() {
        let pair = generate("c1");
        let shown = format!("{pair:?}");
        assert!(!shown.contains("PRIVATE"), "{shown}");
    }
}
