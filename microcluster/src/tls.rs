//! Key pairs, and the TLS configuration of this daemon's listeners. The client side is in `microcluster_client`.

mod check;
mod files;
mod key_pair;
mod server;

pub(crate) use check::{PairError, check};
pub(crate) use files::{LoadError, finish_installs, install, load};
pub(crate) use key_pair::{Certificate, CertificateError, DateError, Generate, KeyPair, KeyPairError, SharedPair};
pub(crate) use server::{CertificateCell, ClusterResolver, MEMBER_SERVER_NAME, server_config};
