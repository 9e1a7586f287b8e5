//! TLS 1.3 to a server that is known by its certificate.

use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, PeerMisbehaved, RootCertStore, SignatureScheme};

use crate::{Fingerprint, FingerprintError, Secret};

/// Why there is no TLS connection, or no configuration for one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// The server's certificate is not the pinned one.
    #[error("the server has the certificate {presented}, expected was {pinned}")]
    WrongCertificate {
        /// What the server presented.
        presented: Fingerprint,
        /// What was pinned.
        pinned: Fingerprint,
    },
    /// A certificate or key that the client was given cannot be read.
    #[error("the {what} given to the client is no valid PEM: {reason}")]
    Pem {
        /// Which of the two.
        what: &'static str,
        /// What the PEM parser says.
        reason: String,
    },
    /// The name that the server's certificate is to carry is none.
    #[error("{name:?} is no DNS name and no IP address")]
    Name {
        /// The text.
        name: String,
    },
    /// Anything else that the TLS library refuses.
    #[error("TLS: {0}")]
    Rustls(rustls::Error),
}

/// The certificate and key that a client shows.
///
/// ```no_run
/// use microcluster_client::Identity;
///
/// # fn main() -> std::io::Result<()> {
/// let file = |name: &str| std::fs::read_to_string(format!("/var/lib/product/{name}"));
/// let identity = Identity::new(file("server.crt")?, file("server.key")?);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The certificate, PEM.
    pub cert_pem: String,
    /// The private key, PEM.
    pub key_pem: Secret,
}

impl Identity {
    /// A certificate and its private key, both PEM.
    pub fn new(cert_pem: impl Into<String>, key_pem: impl Into<Secret>) -> Self {
        Identity { cert_pem: cert_pem.into(), key_pem: key_pem.into() }
    }
}

/// Which server a client accepts.
///
/// ```no_run
/// use microcluster_client::{Client, ServerTrust};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let certificate = std::fs::read_to_string("/var/lib/product/cluster.crt")?;
/// let anonymous = Client::tls("10.0.0.1:9000".parse()?, None, &ServerTrust::pinned_pem(&certificate)?)?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ServerTrust {
    /// The one whose certificate has this fingerprint, whatever its name, address and dates.
    Pinned(Fingerprint),
    /// One whose certificate is valid, signed by this authority, and issued for this name, whatever its address. It goes
    /// on to be accepted when the certificate is replaced by another one of the same authority for the same name.
    Authority {
        /// The certificates of the authority, PEM; in a state directory `cluster.ca`.
        certificate: String,
        /// A DNS name or an IP address that the server's certificate must carry.
        name: String,
    },
}

impl ServerTrust {
    /// Pins the first certificate in a PEM text.
    ///
    /// # Errors
    /// When there is no certificate in it.
    pub fn pinned_pem(certificate: &str) -> Result<Self, FingerprintError> {
        Fingerprint::of_pem(certificate).map(ServerTrust::Pinned)
    }
}

/// The rustls configuration of a client: TLS 1.3 alone, ring, the given identity and trust. ALPN is
/// left empty.
///
/// # Errors
/// When certificate or key cannot be read or do not belong together, and when the trust cannot be used.
pub fn client_config(identity: Option<&Identity>, trust: &ServerTrust) -> Result<ClientConfig, TlsError> {
    let verifier: Arc<dyn ServerCertVerifier> = match trust {
        ServerTrust::Pinned(fingerprint) => Arc::new(PinnedVerifier::new(*fingerprint)),
        ServerTrust::Authority { certificate, name } => Arc::new(AuthorityVerifier::new(certificate, name)?),
    };
    client_config_with_verifier(identity, verifier)
}

/// The same as [`client_config`] with a verifier of one's own.
///
/// # Errors
/// When certificate or key cannot be read or do not belong together.
pub fn client_config_with_verifier(
    identity: Option<&Identity>,
    verifier: Arc<dyn ServerCertVerifier>,
) -> Result<ClientConfig, TlsError> {
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(TlsError::Rustls)?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let Some(identity) = identity else {
        return Ok(builder.with_no_client_auth());
    };
    let pem = |what| move |e: rustls::pki_types::pem::Error| TlsError::Pem { what, reason: e.to_string() };
    let chain = CertificateDer::pem_slice_iter(identity.cert_pem.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(pem("certificate"))?;
    if chain.is_empty() {
        let reason = "there is no certificate in it".into();
        return Err(TlsError::Pem { what: "certificate", reason });
    }
    // Without what the PEM parser says: it may quote the key.
    let key = PrivateKeyDer::from_pem_slice(identity.key_pem.expose().as_bytes()).map_err(|_| TlsError::Pem {
        what: "private key",
        reason: "there is no private key in it that can be read without a password".into(),
    })?;
    builder.with_client_auth_cert(chain, key).map_err(TlsError::Rustls)
}

/// Accepts the server whose certificate has the pinned fingerprint, and checks that it holds the key.
#[derive(Debug)]
pub struct PinnedVerifier {
    pinned: Fingerprint,
    provider: Arc<CryptoProvider>,
}

impl PinnedVerifier {
    /// Pins this certificate; signatures are checked with ring.
    #[must_use]
    pub fn new(pinned: Fingerprint) -> Self {
        PinnedVerifier { pinned, provider: Arc::new(ring::default_provider()) }
    }
}

impl ServerCertVerifier for PinnedVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let presented = Fingerprint::of_der(end_entity);
        if presented == self.pinned {
            return Ok(ServerCertVerified::assertion());
        }
        let mismatch = TlsError::WrongCertificate { presented, pinned: self.pinned };
        let other = rustls::OtherError(Arc::new(mismatch));
        Err(rustls::Error::InvalidCertificate(CertificateError::Other(other)))
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        // Never reached: TLS 1.2 is not offered.
        Err(PeerMisbehaved::SelectedUnofferedCipherSuite.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// Accepts what an authority signed for one name, whatever name or address was dialled.
#[derive(Debug)]
struct AuthorityVerifier {
    inner: Arc<WebPkiServerVerifier>,
    name: ServerName<'static>,
}

impl AuthorityVerifier {
    fn new(certificate: &str, name: &str) -> Result<Self, TlsError> {
        let pem = |reason: String| TlsError::Pem { what: "authority", reason };
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(certificate.as_bytes()) {
            let certificate = certificate.map_err(|e| pem(e.to_string()))?;
            roots.add(certificate).map_err(TlsError::Rustls)?;
        }
        if roots.is_empty() {
            return Err(pem("there is no certificate in it".into()));
        }
        let name = ServerName::try_from(name.to_owned()).map_err(|_| TlsError::Name { name: name.into() })?;
        let provider = Arc::new(ring::default_provider());
        let inner = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
            .build()
            .map_err(|e| pem(e.to_string()))?;
        Ok(AuthorityVerifier { inner, name })
    }
}

impl ServerCertVerifier for AuthorityVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.inner.verify_server_cert(end_entity, intermediates, &self.name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

impl From<rustls::Error> for TlsError {
    /// Finds a mismatch of fingerprints again that went through rustls.
    fn from(error: rustls::Error) -> Self {
        if let rustls::Error::InvalidCertificate(CertificateError::Other(other)) = &error
            && let Some(TlsError::WrongCertificate { presented, pinned }) = other.0.downcast_ref()
        {
            return TlsError::WrongCertificate { presented: *presented, pinned: *pinned };
        }
        TlsError::Rustls(error)
    }
}
