//! The server side: TLS 1.3, a certificate that can be changed while connections are open, and
//! client certificates that are requested, never required.

use std::sync::{Arc, RwLock};

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, PeerIncompatible, ServerConfig, SignatureScheme,
};

use super::key_pair::KeyPair;

/// The server name by which a member asks another one for its own certificate.
///
/// Members know each other by the certificates in the member table, so the cluster's certificate can be
/// changed while a member is down, and one that was removed and kept the cluster's key cannot pose as a member.
pub(crate) const MEMBER_SERVER_NAME: &str = "member.microcluster";

/// The key pair that a listener presents. Clones show the same one; a change is for new connections.
#[derive(Clone, Debug)]
pub(crate) struct CertificateCell(Arc<RwLock<KeyPair>>);

impl CertificateCell {
    pub fn new(pair: KeyPair) -> Self {
        CertificateCell(Arc::new(RwLock::new(pair)))
    }

    pub fn set(&self, pair: KeyPair) {
        // Nothing that holds the lock can panic, so a poisoned value is a whole one.
        *self.0.write().unwrap_or_else(|poisoned| poisoned.into_inner()) = pair;
    }

    pub fn current(&self) -> KeyPair {
        self.0.read().unwrap_or_else(|poisoned| poisoned.into_inner()).clone()
    }
}

impl ResolvesServerCert for CertificateCell {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current().certified())
    }
}

/// What the cluster address presents: the cluster's certificate; to members, who ask for
/// [`MEMBER_SERVER_NAME`], this member's own.
#[derive(Debug)]
pub(crate) struct ClusterResolver {
    pub cluster: CertificateCell,
    pub own: CertificateCell,
}

impl ResolvesServerCert for ClusterResolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let cell = if hello.server_name() == Some(MEMBER_SERVER_NAME) { &self.own } else { &self.cluster };
        Some(cell.current().certified())
    }
}

/// The TLS configuration of a listener that presents what `certificate` says.
pub(crate) fn server_config(certificate: impl ResolvesServerCert + 'static) -> Result<ServerConfig, Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = AnyClientCertificate::new(&provider);
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(Arc::new(certificate));
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    // Every connection does a full handshake: what a connection may do depends on a certificate
    // that was proven on that connection. Members keep theirs open, so nothing is lost.
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// Accepts every client certificate whose owner proves that it has the key. Whether it is a
/// member's is decided for each request, by its fingerprint: the trust store changes while
/// connections are open.
#[derive(Debug)]
struct AnyClientCertificate {
    algorithms: WebPkiSupportedAlgorithms,
}

impl AnyClientCertificate {
    fn new(provider: &CryptoProvider) -> Self {
        AnyClientCertificate { algorithms: provider.signature_verification_algorithms }
    }
}

impl ClientCertVerifier for AnyClientCertificate {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        rustls::server::ParsedCertificate::try_from(end_entity)
            .map_err(|_| Error::InvalidCertificate(CertificateError::BadEncoding))?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::PeerIncompatible(PeerIncompatible::ServerDoesNotSupportTls12Or13))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
