//! Wire types and async HTTP client for microcluster daemons.
//!
//! A [`Client`] talks to one daemon, over its unix socket or over mutual TLS, with typed calls for
//! the Core API and [`Client::query`] for everything that a product adds to it.
//!
//! ```no_run
//! use microcluster_client::{Client, SqlRequest};
//!
//! # async fn example() -> Result<(), microcluster_client::Error> {
//! let client = Client::unix("/var/lib/microcluster/control.socket");
//! for member in client.cluster_members().await? {
//!     println!("{} {} {}", member.name, member.address, member.status);
//! }
//! let results = client.sql(&SqlRequest::new("SELECT 1 AS one")).await?;
//! assert_eq!(results.into_iter().next().and_then(|r| r.columns), Some(vec!["one".into()]));
//! # Ok(())
//! # }
//! ```
//!
//! From another machine, with the certificate of a member or of a trusted tool. The server is the
//! one whose certificate has the pinned [`Fingerprint`], whatever its name or address:
//!
//! ```no_run
//! use microcluster_client::{Client, Identity, ServerTrust};
//!
//! # async fn example(cert: String, key: String, cluster_crt: &str) -> Result<(), Box<dyn std::error::Error>> {
//! let identity = Identity::new(cert, key);
//! let trust = ServerTrust::pinned_pem(cluster_crt)?;
//! let client = Client::tls("10.0.0.1:9000".parse()?, Some(&identity), &trust)?;
//! println!("{:?}", client.status().await?);
//! # Ok(())
//! # }
//! ```
//!
//! The types here are the contract: [`Name`], [`Address`] and [`Fingerprint`] are checked when they
//! are parsed and nowhere else.

// The program in the README, as a test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

mod client;
mod error;
mod names;
#[cfg(feature = "schema")]
mod schema;
mod secret;
mod tls;
mod types;

pub use client::{Client, NOTIFICATION_USER_AGENT, RawResponse, TIMEOUT_DEFAULT, TIMEOUT_INIT};
#[cfg(feature = "websocket")]
pub use client::{Message, WebSocket};
pub use error::{Error, Server};
pub use names::{Address, AddressError, Fingerprint, FingerprintError, Name, NameError};
pub use secret::Secret;
pub use tls::{Identity, PinnedVerifier, ServerTrust, TlsError, client_config, client_config_with_verifier};
pub use types::{
    CertificateExpiry, Consistency, ControlRequest, DaemonConfig, DaemonConfigUpdate, DaemonStatus, DatabaseStatus,
    Empty, Envelope, EnvelopeType, HeartbeatInfo, Hook, InitConfig, InitConfigError, JoinRequest, JoinResponse,
    KeyPair, Leader, Member, MemberLocal, MemberStatus, MemberVerdict, NewMemberHook, RemovalHook, Role, ServerConfig,
    ServerStatus, SqlDump, SqlRequest, SqlResult, SqlResultType, SqlResults, Timestamp, TimestampError, TokenRecord,
    TokenRequest, Verdict, Verification,
};
