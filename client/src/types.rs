//! The objects of the Core API, field names exactly as on the wire.

mod cluster;
mod control;
mod daemon;
mod envelope;
mod hook;
mod init_config;
mod join;
mod lenient;
mod sql;
mod timestamp;

pub use cluster::{HeartbeatInfo, Member, MemberLocal, MemberStatus, Role};
pub use control::{ControlRequest, TokenRecord, TokenRequest};
pub use daemon::{
    CertificateExpiry, DaemonConfig, DaemonConfigUpdate, DaemonStatus, DatabaseStatus, KeyPair, Leader, MemberVerdict,
    ServerConfig, ServerStatus, Verdict, Verification,
};
pub use envelope::{Empty, Envelope, EnvelopeType};
pub use hook::{Hook, NewMemberHook, RemovalHook};
pub use init_config::{InitConfig, InitConfigError};
pub use join::{JoinRequest, JoinResponse};
pub use sql::{Consistency, SqlDump, SqlRequest, SqlResult, SqlResultType, SqlResults};
pub use timestamp::{Timestamp, TimestampError};
