//! Whether a key pair that somebody brings can be used: read, fits, valid now, signed by the authority beside it.

use std::sync::Arc;

use microcluster_client::{Secret, Timestamp};
use rustls::RootCertStore;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};

use super::key_pair::{DateError, KeyPair, KeyPairError, SharedPair, only_certificates};

/// Why a key pair cannot be used. No message quotes the key.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PairError {
    #[error("the {what} is missing; give both certificate and private key, PEM")]
    Missing { what: &'static str },
    #[error(transparent)]
    KeyPair(#[from] KeyPairError),
    #[error(transparent)]
    Dates(#[from] DateError),
    #[error("the certificate of the authority cannot be used: {reason}")]
    Authority { reason: String },
    #[error(
        "the certificate carries no DNS name in its subject alternative name: clients that verify it by its authority need one"
    )]
    NoName,
    #[error("the certificate cannot be verified by the authority given with it: {reason}")]
    NotSigned { reason: String },
}

/// Reads a key pair and checks all that can be known of it at `now`. An empty authority is none.
pub(crate) fn check(certificate: &str, key: &Secret, authority: &str, now: Timestamp) -> Result<SharedPair, PairError> {
    for (what, text) in [("certificate", certificate), ("private key", key.expose())] {
        if text.trim().is_empty() {
            return Err(PairError::Missing { what });
        }
    }
    let pair = KeyPair::parse(certificate, key)?;
    pair.certificate.check_dates(now)?;
    let authority = authority.trim();
    if authority.is_empty() {
        return Ok(SharedPair { pair, authority: String::new() });
    }
    verify(&pair, authority, now)?;
    Ok(SharedPair { pair, authority: format!("{authority}\n") })
}

/// Does what a client does that verifies by the authority.
fn verify(pair: &KeyPair, authority: &str, now: Timestamp) -> Result<(), PairError> {
    let unusable = |e: &dyn std::fmt::Display| PairError::Authority { reason: e.to_string() };
    only_certificates(authority).map_err(|e| unusable(&e))?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(authority.as_bytes()) {
        roots.add(certificate.map_err(|e| unusable(&e))?).map_err(|e| unusable(&e))?;
    }
    if roots.is_empty() {
        return Err(unusable(&"there is no certificate in the PEM text"));
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build();
    let verifier = verifier.map_err(|e| unusable(&e))?;
    let name = pair.certificate.names().iter().find_map(|name| ServerName::try_from(name.as_str()).ok());
    let name = name.ok_or(PairError::NoName)?;
    let seconds = u64::try_from(now.unix_seconds()).unwrap_or_default();
    let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds));
    let Some((own, intermediates)) = pair.chain().split_first() else {
        return Err(PairError::Missing { what: "certificate" });
    };
    let verified = verifier.verify_server_cert(own, intermediates, &name, &[], now);
    verified.map(|_| ()).map_err(|e| PairError::NotSigned { reason: e.to_string() })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer};
    use time::OffsetDateTime;

    use super::*;
    use crate::fuzz::{PAIR, almost, cases};

    struct Made {
        certificate: String,
        key: Secret,
    }

    fn authority() -> (Issuer<'static, rcgen::KeyPair>, String) {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        (Issuer::new(params, key), certificate.pem())
    }

    fn signed(issuer: &Issuer<'_, rcgen::KeyPair>, names: &[&str], days: (i64, i64)) -> Made {
        let mut params = CertificateParams::new(names.iter().map(ToString::to_string).collect::<Vec<_>>()).unwrap();
        params.not_before = OffsetDateTime::now_utc() + time::Duration::days(days.0);
        params.not_after = OffsetDateTime::now_utc() + time::Duration::days(days.1);
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, issuer).unwrap();
        Made { certificate: certificate.pem(), key: Secret::new(key.serialize_pem()) }
    }

    #[test]
    fn a_good_pair_is_taken_with_and_without_its_authority() {
        let (issuer, ca) = authority();
        let made = signed(&issuer, &["cluster.example"], (-1, 30));
        let now = Timestamp::now();
        assert_eq!(check(&made.certificate, &made.key, " \n", now).unwrap().authority, "");
        assert_eq!(check(&made.certificate, &made.key, &ca, now).unwrap().authority.trim(), ca.trim());
    }

    #[test]
    fn bad_pairs_are_refused() {
        let (issuer, ca) = authority();
        let (_, other_ca) = authority();
        let now = Timestamp::now();
        let good = signed(&issuer, &["a.example"], (-1, 30));
        let other = signed(&issuer, &["a.example"], (-1, 30));
        let refused = |cert: &str, key: &Secret, ca: &str| check(cert, key, ca, now).unwrap_err();
        let none = Secret::default();
        assert!(matches!(refused("", &good.key, ""), PairError::Missing { what: "certificate" }));
        assert!(matches!(refused(&good.certificate, &none, ""), PairError::Missing { what: "private key" }));
        assert!(matches!(refused("x", &good.key, ""), PairError::KeyPair(KeyPairError::Certificate(_))));
        assert!(matches!(refused(&good.certificate, &"x".into(), ""), PairError::KeyPair(KeyPairError::Key)));
        assert!(matches!(refused(&good.certificate, &other.key, ""), PairError::KeyPair(KeyPairError::Mismatch(_))));
        let old = signed(&issuer, &["a.example"], (-30, -1));
        assert!(matches!(refused(&old.certificate, &old.key, ""), PairError::Dates(DateError::Expired { .. })));
        let early = signed(&issuer, &["a.example"], (1, 30));
        assert!(matches!(refused(&early.certificate, &early.key, ""), PairError::Dates(DateError::NotYetValid { .. })));
        let both = format!("{}{}", good.certificate, good.key.expose());
        assert!(matches!(refused(&both, &good.key, ""), PairError::KeyPair(KeyPairError::Certificate(_))));
        let both = format!("{ca}{}", good.key.expose());
        assert!(matches!(refused(&good.certificate, &good.key, &both), PairError::Authority { .. }));
        assert!(matches!(refused(&good.certificate, &good.key, "x"), PairError::Authority { .. }));
        assert!(matches!(refused(&good.certificate, &good.key, &other_ca), PairError::NotSigned { .. }));
        let nameless = signed(&issuer, &[], (-1, 30));
        assert!(matches!(refused(&nameless.certificate, &nameless.key, &ca), PairError::NoName));
    }

    #[test]
    fn no_message_quotes_the_key() {
        let (issuer, _) = authority();
        let made = signed(&issuer, &["a.example"], (-1, 30));
        let body = made.key.expose().lines().nth(1).unwrap().to_owned();
        // The mistakes of somebody who copies a key by hand: on one line, without its end.
        for broken in [made.key.expose().replace('\n', ""), made.key.expose().replace("-----END PRIVATE KEY-----", "")]
        {
            let message = check(&made.certificate, &Secret::new(broken), "", Timestamp::now()).unwrap_err().to_string();
            assert!(!message.contains(&body[..20]), "{message}");
        }
    }

    #[test]
    fn the_time_counts() {
        let (issuer, ca) = authority();
        let made = signed(&issuer, &["a.example"], (-1, 1));
        let later = Timestamp::now().checked_add(Duration::from_secs(2 * 86_400)).unwrap();
        assert!(matches!(
            check(&made.certificate, &made.key, &ca, later),
            Err(PairError::Dates(DateError::Expired { .. }))
        ));
    }

    proptest! {
        #![proptest_config(cases(400))]

        /// Whatever is changed in one of the three texts: taken or refused, and the key in no message.
        #[test]
        fn a_pair_that_is_almost_right_is_taken_or_refused(
            (texts, which, changed) in (Just(three()), 0_usize..3).prop_flat_map(|(texts, which)| {
                let changed = almost(Just(texts[which].clone().into_bytes()));
                (Just(texts), Just(which), changed)
            }),
        ) {
            let body = texts[1].lines().nth(1).unwrap().to_owned();
            let mut texts = texts;
            texts[which] = String::from_utf8_lossy(&changed).into_owned();
            let [certificate, key, authority] = &texts;
            if let Err(e) = check(certificate, &key.as_str().into(), authority, Timestamp::now()) {
                let message = e.to_string();
                prop_assert!(!message.contains(&body[..20]) && !message.contains(&body[30..50]), "{}", message);
            }
        }

        /// A certificate whose DER was changed, in PEM that is as it should be.
        #[test]
        fn a_certificate_with_other_bytes_is_taken_or_refused(
            der in almost(Just(CertificateDer::from_pem_slice(three()[0].as_bytes()).unwrap().to_vec())),
        ) {
            use base64::Engine;
            let base64 = base64::engine::general_purpose::STANDARD.encode(der);
            let pem = format!("-----BEGIN CERTIFICATE-----\n{base64}\n-----END CERTIFICATE-----\n");
            let [_, key, authority] = three();
            let _ = check(&pem, &key.into(), &authority, Timestamp::now());
            let _ = crate::tls::Certificate::parse(&pem);
        }

        #[test]
        fn any_texts_are_refused(certificate in ".{0,200}", key in ".{0,200}", authority in ".{0,200}") {
            prop_assert!(check(&certificate, &key.into(), &authority, Timestamp::now()).is_err());
        }
    }

    /// A certificate, its key and its authority.
    fn three() -> [String; 3] {
        PAIR.map(str::to_owned)
    }

    #[test]
    fn the_pair_that_is_changed_is_a_good_one() {
        let [certificate, key, authority] = three();
        check(&certificate, &key.into(), &authority, Timestamp::now()).unwrap();
    }
}
