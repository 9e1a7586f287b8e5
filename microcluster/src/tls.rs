//! Key pairs, and the TLS configuration of this daemon's listeners. The client side is in `microcluster_client`.

mod key_pair;
mod server;

pub(crate) use key_pair::{Certificate, CertificateError, Generate, KeyPair, KeyPairError};
pub(crate) use server::{CertificateCell, server_config};
