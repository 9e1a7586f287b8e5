//! The client side between members: a server is known by the certificate of a trusted member.

use std::sync::Arc;

use microcluster_client::Fingerprint;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, DigitallySignedStruct, Error, OtherError, PeerMisbehaved, SignatureScheme};

use crate::trust::Trust;

/// Accepts servers that have proven to own the certificate of a member that is trusted at that moment.
#[derive(Debug)]
pub(super) struct MemberVerifier {
    trust: Trust,
    algorithms: WebPkiSupportedAlgorithms,
}

/// Somebody else answers at the address of a member.
#[derive(Debug, thiserror::Error)]
#[error("the server has the certificate {0}, which is no member's")]
struct NoMember(Fingerprint);

impl MemberVerifier {
    pub fn new(trust: Trust) -> Self {
        let algorithms = rustls::crypto::ring::default_provider().signature_verification_algorithms;
        MemberVerifier { trust, algorithms }
    }
}

impl ServerCertVerifier for MemberVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let presented = Fingerprint::of_der(end_entity);
        if self.trust.is_trusted(&presented) {
            return Ok(ServerCertVerified::assertion());
        }
        let other = OtherError(Arc::new(NoMember(presented)));
        Err(Error::InvalidCertificate(CertificateError::Other(other)))
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        // Never reached: TLS 1.2 is not offered.
        Err(PeerMisbehaved::SelectedUnofferedCipherSuite.into())
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
