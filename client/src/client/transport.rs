//! Opens connections: a unix socket, or TCP with TLS.

use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::{Address, Error, Server, TlsError};

/// A member that does not even accept in this time is taken for unreachable.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Opens connections to one daemon, whatever the address in a request says.
#[derive(Clone, Debug)]
pub(super) struct Connector(Arc<Way>);

#[derive(Debug)]
enum Way {
    Unix(PathBuf),
    Tls(Address, ServerName<'static>, Arc<ClientConfig>),
}

impl Connector {
    pub(super) fn unix(path: PathBuf) -> Self {
        Connector(Arc::new(Way::Unix(path)))
    }

    pub(super) fn tls(address: Address, name: ServerName<'static>, config: ClientConfig) -> Self {
        Connector(Arc::new(Way::Tls(address, name, Arc::new(config))))
    }
}

impl Connector {
    async fn connect(&self) -> Result<Stream, ConnectError> {
        let connecting = async {
            match &*self.0 {
                Way::Unix(path) => connect_unix(path).await,
                Way::Tls(address, name, config) => connect_tls(*address, name.clone(), config).await,
            }
        };
        let late = |_| ConnectError::Io(io::ErrorKind::TimedOut.into());
        tokio::time::timeout(CONNECT_TIMEOUT, connecting).await.map_err(late)?
    }

    /// A connection that speaks HTTP/1.1, which is what can be upgraded.
    #[cfg(feature = "websocket")]
    pub(super) async fn connect_http1(&self) -> Result<Stream, ConnectError> {
        match &*self.0 {
            Way::Unix(_) => self.connect().await,
            Way::Tls(address, name, config) => {
                let mut config = ClientConfig::clone(config);
                config.alpn_protocols = vec![b"http/1.1".to_vec()];
                Connector::tls(*address, name.clone(), config).connect().await
            }
        }
    }
}

impl tower::Service<Uri> for Connector {
    type Response = TokioIo<Stream>;
    type Error = ConnectError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, ConnectError>> + Send>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _uri: Uri) -> Self::Future {
        let connector = self.clone();
        Box::pin(async move { connector.connect().await.map(TokioIo::new) })
    }
}

async fn connect_unix(path: &Path) -> Result<Stream, ConnectError> {
    Ok(Stream::Unix(UnixStream::connect(path).await?))
}

async fn connect_tls(
    address: Address,
    name: ServerName<'static>,
    config: &Arc<ClientConfig>,
) -> Result<Stream, ConnectError> {
    let tcp = TcpStream::connect(address.socket_addr()).await?;
    tcp.set_nodelay(true)?;
    match TlsConnector::from(Arc::clone(config)).connect(name, tcp).await {
        Ok(stream) => Ok(Stream::Tls(Box::new(stream))),
        Err(e) => Err(match e.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>()) {
            Some(tls) => ConnectError::Tls(tls.clone()),
            None => ConnectError::Io(e),
        }),
    }
}

/// Why there is no connection; the request was not sent.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectError {
    #[error("cannot connect")]
    Io(#[from] io::Error),
    #[error("cannot connect")]
    Tls(#[source] rustls::Error),
}

impl ConnectError {
    /// The same as an error of a call. It is behind a reference in the HTTP library's error.
    pub(super) fn to_error(&self, server: Server) -> Error {
        match self {
            ConnectError::Tls(e) => Error::Tls { server, source: TlsError::from(e.clone()) },
            ConnectError::Io(e) => {
                let source = match e.raw_os_error() {
                    Some(code) => io::Error::from_raw_os_error(code),
                    None => io::Error::new(e.kind(), e.to_string()),
                };
                Error::Unreachable { server, source }
            }
        }
    }
}

/// An open connection.
#[derive(Debug)]
pub(super) enum Stream {
    Unix(UnixStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        match self {
            Stream::Tls(stream) if stream.get_ref().1.alpn_protocol() == Some(b"h2") => {
                Connected::new().negotiated_h2()
            }
            _ => Connected::new(),
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Unix(stream) => Pin::new(stream).poll_read(cx, buffer),
            Stream::Tls(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Unix(stream) => Pin::new(stream).poll_write(cx, bytes),
            Stream::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Unix(stream) => Pin::new(stream).poll_write_vectored(cx, bytes),
            Stream::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, bytes),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Stream::Unix(stream) => stream.is_write_vectored(),
            Stream::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Unix(stream) => Pin::new(stream).poll_flush(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
