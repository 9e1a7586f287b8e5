//! Hooks that one member has run on another one.

use serde::{Deserialize, Serialize, Serializer};

use super::cluster::MemberLocal;
use super::daemon::DaemonConfig;

/// A hook of the product that one member has run on another, with what it is told.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Hook {
    /// The member is about to be removed.
    PreRemove(RemovalHook),
    /// A member was removed.
    PostRemove(RemovalHook),
    /// A member is joining.
    OnNewMember(NewMemberHook),
    /// The configuration of the member was changed.
    OnDaemonConfigUpdate(DaemonConfig),
}

/// What hooks around a removal are told.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RemovalHook {
    /// The removal goes on whatever fails.
    pub force: bool,
}

/// What the hook for a new member is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewMemberHook {
    /// The member that joins.
    pub new_member: MemberLocal,
}

impl Hook {
    /// The names in the path of the request.
    pub const NAMES: [&'static str; 4] = ["pre-remove", "post-remove", "on-new-member", "on-daemon-config-update"];

    /// The name in the path of the request.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Hook::PreRemove(_) => Hook::NAMES[0],
            Hook::PostRemove(_) => Hook::NAMES[1],
            Hook::OnNewMember(_) => Hook::NAMES[2],
            Hook::OnDaemonConfigUpdate(_) => Hook::NAMES[3],
        }
    }
}

/// The body of the request: what the hook is told; the hook itself is in the path.
impl Serialize for Hook {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Hook::PreRemove(told) | Hook::PostRemove(told) => told.serialize(serializer),
            Hook::OnNewMember(told) => told.serialize(serializer),
            Hook::OnDaemonConfigUpdate(config) => config.serialize(serializer),
        }
    }
}
