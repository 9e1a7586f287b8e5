//! A server for the tests: answers with a closure and remembers what it was asked.

use std::io;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{Request, Response, Version};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use microcluster_client::{Address, Client, Fingerprint};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

/// What a request looked like.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Method, path and query.
    pub line: String,
    pub body: String,
    pub agent: String,
    pub version: Version,
    /// The certificate that the client showed.
    pub client: Option<Fingerprint>,
}

pub type Answer = Response<Full<Bytes>>;

/// An answer with this status and body.
pub fn answer(code: u16, body: &str) -> Answer {
    let body = Full::new(Bytes::copy_from_slice(body.as_bytes()));
    Response::builder().status(code).body(body).unwrap()
}

/// No answer, the connection stays open.
pub fn never() -> Answer {
    let mut answer = answer(200, "");
    answer.extensions_mut().insert(Silence::Wait);
    answer
}

/// No answer, the connection is closed.
pub fn hang_up() -> Answer {
    let mut answer = answer(200, "");
    answer.extensions_mut().insert(Silence::HangUp);
    answer
}

#[derive(Clone, Copy)]
enum Silence {
    Wait,
    HangUp,
}

type Handler = Box<dyn FnMut(&Seen) -> Answer + Send>;

#[derive(Default)]
struct Log {
    requests: Vec<Seen>,
    connections: usize,
}

/// Runs until it is dropped.
pub struct Server {
    dir: tempfile::TempDir,
    address: Option<Address>,
    log: Arc<Mutex<Log>>,
    _tasks: JoinSet<()>,
}

impl Server {
    pub fn unix(handler: impl FnMut(&Seen) -> Answer + Send + 'static) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("control.socket")).unwrap();
        let (log, handler) = shared(handler);
        let mut tasks = JoinSet::new();
        let accepted = Arc::clone(&log);
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                accepted.lock().unwrap().connections += 1;
                connections.spawn(serve(stream, None, Arc::clone(&accepted), Arc::clone(&handler)));
            }
        });
        Server { dir, address: None, log, _tasks: tasks }
    }

    pub fn tls(key: CertifiedKey, handler: impl FnMut(&Seen) -> Answer + Send + 'static) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap().into();
        let listener = TcpListener::from_std(listener).unwrap();
        let (log, handler) = shared(handler);
        let mut tasks = JoinSet::new();
        let accepted = Arc::clone(&log);
        let acceptor = acceptor(key);
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((tcp, _)) = listener.accept().await {
                accepted.lock().unwrap().connections += 1;
                // A handshake that the client refuses is one of the tests.
                let Ok(stream) = acceptor.accept(tcp).await else {
                    continue;
                };
                let client = stream.get_ref().1.peer_certificates().map(|c| Fingerprint::of_der(&c[0]));
                connections.spawn(serve(stream, client, Arc::clone(&accepted), Arc::clone(&handler)));
            }
        });
        Server { dir: tempfile::tempdir().unwrap(), address: Some(address), log, _tasks: tasks }
    }

    pub fn unix_client(&self) -> Client {
        Client::unix(self.dir.path().join("control.socket"))
    }

    pub fn address(&self) -> Address {
        self.address.unwrap()
    }

    pub fn requests(&self) -> Vec<Seen> {
        self.log.lock().unwrap().requests.clone()
    }

    pub fn connections(&self) -> usize {
        self.log.lock().unwrap().connections
    }
}

fn shared(handler: impl FnMut(&Seen) -> Answer + Send + 'static) -> (Arc<Mutex<Log>>, Arc<Mutex<Handler>>) {
    (Arc::default(), Arc::new(Mutex::new(Box::new(handler))))
}

async fn serve(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    client: Option<Fingerprint>,
    log: Arc<Mutex<Log>>,
    handler: Arc<Mutex<Handler>>,
) {
    let service = service_fn(move |request: Request<Incoming>| {
        let (log, handler) = (Arc::clone(&log), Arc::clone(&handler));
        async move {
            let (head, body) = request.into_parts();
            let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
            let path = head.uri.path_and_query().unwrap();
            let agent = head.headers.get("user-agent").unwrap().to_str().unwrap().to_owned();
            let seen = Seen {
                line: format!("{} {path}", head.method),
                body: String::from_utf8(body.to_vec()).unwrap(),
                agent,
                version: head.version,
                client,
            };
            let answer = (*handler.lock().unwrap())(&seen);
            log.lock().unwrap().requests.push(seen);
            match answer.extensions().get() {
                Some(Silence::Wait) => std::future::pending().await,
                Some(Silence::HangUp) => Err(io::Error::other("hanging up")),
                None => Ok(answer),
            }
        }
    });
    // An error here is a client that went away, or a test that wants it.
    let _ = auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await;
}

/// A self-signed certificate with its key.
pub struct KeyPair {
    pub cert_pem: String,
    pub key_pem: String,
}

impl KeyPair {
    pub fn new(name: &str) -> Self {
        let pair = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
        KeyPair { cert_pem: pair.cert.pem(), key_pem: pair.signing_key.serialize_pem() }
    }

    pub fn certified(&self) -> CertifiedKey {
        self.certified_with_key_of(self)
    }

    /// This certificate with the key of another: what a thief of the certificate has.
    pub fn certified_with_key_of(&self, other: &KeyPair) -> CertifiedKey {
        let chain = vec![CertificateDer::from_pem_slice(self.cert_pem.as_bytes()).unwrap()];
        let key = PrivateKeyDer::from_pem_slice(other.key_pem.as_bytes()).unwrap();
        CertifiedKey::new(chain, rustls::crypto::ring::sign::any_supported_type(&key).unwrap())
    }
}

fn acceptor(key: CertifiedKey) -> TlsAcceptor {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_client_cert_verifier(Arc::new(Anyone))
        .with_cert_resolver(Arc::new(Fixed(Arc::new(key))));
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    TlsAcceptor::from(Arc::new(config))
}

#[derive(Debug)]
struct Fixed(Arc<CertifiedKey>);

impl ResolvesServerCert for Fixed {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }
}

/// Asks for a client certificate and takes any.
#[derive(Debug)]
struct Anyone;

impl ClientCertVerifier for Anyone {
    fn root_hint_subjects(&self) -> &[rustls::DistinguishedName] {
        &[]
    }

    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn verify_client_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        unreachable!("TLS 1.3 alone")
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        let algorithms = rustls::crypto::ring::default_provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        let provider = rustls::crypto::ring::default_provider();
        provider.signature_verification_algorithms.supported_schemes()
    }
}
