//! The cluster as one of its members sees it and changes it: member rows, Raft membership, trust.

mod admission;
mod certificate_keeper;
pub(crate) mod certificates;
mod heartbeat;
mod hook_calls;
pub(crate) mod join;
mod liveness;
mod member_verifier;
pub(crate) mod members;
mod membership;
mod node;
pub(crate) mod own_config;
mod peers;
pub(crate) mod rebuild;
mod reconcile;
mod removal;
mod roles;
pub(crate) mod schema;
pub(crate) mod tokens;
mod trust_keeper;
mod upgrade;

pub(crate) use admission::{AdmitError, ConfirmError};
pub(crate) use certificate_keeper::keep_certificates;
pub(crate) use certificates::InstallError;
pub(crate) use heartbeat::{HeartbeatError, keep_heartbeat};
pub use hook_calls::RoleStatus;
pub(crate) use hook_calls::{Confirmation, HookError, HookRefusal, NodeHooks, RoleChanges};
pub(crate) use membership::{Membership, removal_found};
pub(crate) use node::{Node, NodeParts};
pub(crate) use own_config::{ConfigError, keep_own_row};
pub(crate) use peers::Peers;
pub(crate) use reconcile::keep_reconciled;
pub(crate) use removal::{Removal, RemoveError};
pub(crate) use trust_keeper::keep_trust;
pub(crate) use upgrade::{Standing, WaitsForUpgrade, keep_upgraded};
