//! Joining, as decisions without I/O: whether a joiner is admitted, and what a joiner does next.
//!
//! The order is what makes a crash at any moment harmless:
//!
//! | step | joiner | leader | a crash after it |
//! |---|---|---|---|
//! | present | shows its token | inserts a `PENDING` row under a new id | the row is dropped after a while; the token is good for another try, which finds the row |
//! | record | writes its join record | | the join goes on at the next start |
//! | open | opens its database and its listener | | the same |
//! | confirm | asks to be taken in | adds the learner, has all members run `on_new_member`, lets it vote, then marks the row | asking again finishes what is missing |
//! | await | waits to see itself as a member | | the same |
//! | commit | runs `post_join`, spends the token, writes `daemon.yaml`, removes the record | | it is a member |
//!
//! From the first confirm on the joiner may vote. It then must not throw its log away on its own: a
//! cluster of two could never elect a leader again. Only the leader's word that it is no member
//! (`Gone`) ends the join from there.
//!
//! When `on_new_member` fails on a member the leader drops the joiner before it votes. When `post_join` fails the joiner
//! asks to be removed (`Withdraw`), and only then throws its log away. The token is spent by the joiner, last: in
//! both cases it is good for another try.

use std::fmt;

use microcluster_client::{Address, Fingerprint, InitConfig, JoinRequest, Name, Secret, Timestamp};
use serde::{Deserialize, Serialize};

use super::members::{MemberRow, RowRole};
use super::tokens::{self, TokenRow};
use crate::db::{Level, NodeId};

/// What a joiner has to remember to go on after a crash. Stored before anything else of the join.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct JoinRecord {
    pub id: NodeId,
    pub name: Name,
    pub address: Address,
    /// For the product's hooks.
    pub config: InitConfig,
    /// The secret of the token: it proves to the leader whose join this is.
    pub secret: Secret,
    pub cluster_cert: String,
    pub cluster_key: Secret,
    /// Members that can be asked to be taken in; the first one answered last time.
    pub members: Vec<microcluster_client::MemberLocal>,
    /// A member whose files were damaged comes in again: its product is not told.
    #[serde(default)]
    pub is_rebuild: bool,
    /// Its product has agreed to what it has become.
    #[serde(default)]
    pub is_agreed: bool,
}

/// What an admitted joiner shows to be confirmed or dropped.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Claim {
    pub member_id: NodeId,
    pub secret: Secret,
}

/// What a joiner does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Record,
    Open,
    /// As `Open`, after a restart: it may vote by now, so its log must not be thrown away.
    Reopen,
    Confirm,
    Await,
    Commit,
    /// The product does not want to be a member: have the leader remove this one.
    Withdraw,
    /// Tell the leader and remove all traces here.
    Undo,
    /// It is a member.
    Joined,
    /// It is not, and nothing of the join is left.
    NotJoined,
    /// It stops here and goes on at the next start of the daemon.
    Suspended,
}

/// How a step ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Done,
    /// The leader says that this is no member, and will not be.
    Gone,
    /// The product refuses.
    Refused,
    /// Not possible, or nobody can tell whether it was done, and the wait is over.
    Failed,
}

impl Step {
    /// The step that follows.
    pub fn next(self, outcome: Outcome) -> Step {
        use Outcome::{Done, Failed, Gone, Refused};
        match (self, outcome) {
            (step @ (Step::Joined | Step::NotJoined | Step::Suspended), _) => step,
            (Step::Record, Done) => Step::Open,
            (Step::Open | Step::Reopen, Done) => Step::Confirm,
            (Step::Confirm, Done) => Step::Await,
            (Step::Await, Done) => Step::Commit,
            (Step::Commit, Done) => Step::Joined,
            (Step::Commit, Refused) => Step::Withdraw,
            (Step::Withdraw, Done) => Step::Undo,
            (Step::Undo, Done) => Step::NotJoined,
            // Nothing that votes exists yet: the leader drops the row by itself if it is not told.
            (Step::Record | Step::Open, Failed | Refused) => Step::Undo,
            // It may vote by now; only the leader can tell.
            (Step::Reopen | Step::Confirm | Step::Await | Step::Commit | Step::Withdraw | Step::Undo, Failed)
            | (Step::Reopen | Step::Confirm | Step::Await | Step::Withdraw | Step::Undo, Refused) => Step::Suspended,
            (Step::Undo, Gone) => Step::NotJoined,
            (_, Gone) => Step::Undo,
        }
    }

    /// What tests call that a joiner has done it, for the steps of a join that succeeds.
    pub fn done(self) -> Option<&'static str> {
        match self {
            Step::Record => Some("recorded"),
            Step::Open => Some("opened"),
            Step::Confirm => Some("confirmed"),
            Step::Await => Some("awaited"),
            _ => None,
        }
    }

    /// Where a suspended join goes on when it is tried again: what it waited for may have come, or the leader may know better.
    pub fn again(self) -> Step {
        match self {
            // It may have been removed meanwhile.
            Step::Await | Step::Commit => Step::Confirm,
            Step::Withdraw => Step::Commit,
            step => step,
        }
    }

    pub fn is_final(self) -> bool {
        matches!(self, Step::Joined | Step::NotJoined | Step::Suspended)
    }
}

/// The versions that members of one cluster must have in common.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Versions {
    pub schema_internal: u64,
    pub schema_external: u64,
    pub extensions: Vec<String>,
}

impl Versions {
    /// How far that is.
    pub fn level(&self) -> Level {
        Level {
            internal: self.schema_internal,
            external: self.schema_external,
            extensions: self.extensions.len() as u64,
        }
    }
}

/// What the leader knows when a joiner presents itself.
pub(crate) struct Situation<'a> {
    pub tokens: &'a [TokenRow],
    pub members: &'a [MemberRow],
    pub own: &'a Versions,
    /// How far the cluster is.
    pub cluster: Level,
    pub now: Timestamp,
}

/// A joiner may come in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Admission {
    /// The token it comes by.
    pub token_id: i64,
    /// The row of its earlier try with this token.
    pub earlier: Option<Earlier>,
}

/// The row of an earlier try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Earlier {
    /// The same daemon, which may not have had the answer, or has presented itself twice: it is given the same answer.
    Same(NodeId),
    /// Another daemon, or one that was made anew.
    Other(NodeId),
}

/// Why a joiner may not come in.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error(
        "the join token is not known here: it was used, revoked, or made before the cluster was recovered; make a new one with `microctl tokens add {name}` on a member"
    )]
    TokenUnknown { name: Name },
    #[error("the join token expired at {at}; make a new one with `microctl tokens add {name}` on a member")]
    TokenExpired { name: Name, at: Timestamp },
    #[error(
        "the join token is for the name {token_name}, not for {name}; join with that name, or make a token with `microctl tokens add {name}` on a member"
    )]
    TokenForOther { name: Name, token_name: Name },
    #[error(
        "there is a member named {name} already; remove it first with `microctl cluster remove {name}`, or join under another name"
    )]
    NameTaken { name: Name },
    #[error("the address {address} belongs to the member {member}; use another one, or remove that member first")]
    AddressTaken { address: Address, member: Name },
    #[error(
        "the certificate belongs to the member {member}; this daemon is, or was, that member: remove it from the cluster first"
    )]
    CertificateTaken { member: Name },
    #[error("the cluster is being upgraded; join it when all its members are")]
    Upgrading,
    #[error("{what} of the joining daemon is {joiner}, the cluster has {cluster}; install the same version on both")]
    VersionDiffers { what: &'static str, joiner: String, cluster: String },
}

/// Decides whether a joiner is admitted.
pub(crate) fn admit(
    situation: &Situation<'_>,
    request: &JoinRequest,
    certificate: Fingerprint,
) -> Result<Admission, Refusal> {
    let name = || request.name.clone();
    let token =
        tokens::find(situation.tokens, &request.secret).ok_or_else(|| Refusal::TokenUnknown { name: name() })?;
    if token.name != request.name {
        return Err(Refusal::TokenForOther { name: name(), token_name: token.name.clone() });
    }
    if token.is_expired(situation.now) {
        return Err(Refusal::TokenExpired { name: name(), at: token.expires_at });
    }
    let is_earlier_try = |row: &&MemberRow| row.role == RowRole::Pending && row.token_id == Some(token.id);
    for row in situation.members.iter().filter(|row| !is_earlier_try(row)) {
        if row.name == request.name {
            return Err(Refusal::NameTaken { name: name() });
        }
        if row.address == request.address {
            let member = row.name.clone();
            return Err(Refusal::AddressTaken { address: request.address, member });
        }
        if Fingerprint::of_pem(&row.certificate) == Ok(certificate) {
            return Err(Refusal::CertificateTaken { member: row.name.clone() });
        }
    }
    let own = situation.own.level();
    let is_current = |row: &MemberRow| row.role == RowRole::Leaving || row.level() == own;
    if situation.cluster != own || !situation.members.iter().filter(|row| !is_earlier_try(row)).all(is_current) {
        // Its product would begin on tables that are about to change.
        return Err(Refusal::Upgrading);
    }
    same_versions(situation.own, request)?;
    let earlier = situation.members.iter().find(is_earlier_try).map(|row| {
        let is_same = row.address == request.address && Fingerprint::of_pem(&row.certificate) == Ok(certificate);
        if is_same { Earlier::Same(row.id) } else { Earlier::Other(row.id) }
    });
    Ok(Admission { token_id: token.id, earlier })
}

fn same_versions(own: &Versions, request: &JoinRequest) -> Result<(), Refusal> {
    let same = |what, joiner: &dyn fmt::Display, cluster: &dyn fmt::Display, equal: bool| {
        if equal {
            return Ok(());
        }
        Err(Refusal::VersionDiffers { what, joiner: joiner.to_string(), cluster: cluster.to_string() })
    };
    let internal = (request.schema_internal_version, own.schema_internal);
    same("the internal schema version", &internal.0, &internal.1, internal.0 == internal.1)?;
    let external = (request.schema_external_version, own.schema_external);
    same("the schema version", &external.0, &external.1, external.0 == external.1)?;
    let list = |extensions: &[String]| format!("[{}]", extensions.join(", "));
    let (joiner, cluster) = (list(&request.extensions), list(&own.extensions));
    same("the list of API extensions", &joiner, &cluster, request.extensions == own.extensions)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::tls::{Generate, KeyPair};
    use crate::token::new_secret;

    struct Fixture {
        tokens: Vec<TokenRow>,
        members: Vec<MemberRow>,
        own: Versions,
        cluster: Level,
        request: JoinRequest,
    }

    fn certificate(name: &str) -> String {
        KeyPair::generate(&Generate { name, addresses: &[] }).unwrap().certificate.pem
    }

    fn row(id: NodeId, name: &str, port: u16, role: RowRole, token_id: Option<i64>) -> MemberRow {
        MemberRow {
            id,
            name: name.parse().unwrap(),
            address: format!("127.0.0.1:{port}").parse().unwrap(),
            certificate: certificate(name),
            role,
            schema_internal: 1,
            schema_external: 0,
            extensions: vec!["a".into()],
            last_heartbeat: Timestamp::ZERO,
            token_id,
            failure_domain: 0,
        }
    }

    fn token(id: i64, name: &str) -> TokenRow {
        TokenRow { id, name: name.parse().unwrap(), secret: new_secret(), expires_at: Timestamp::ZERO }
    }

    fn fixture() -> Fixture {
        let tokens = vec![token(1, "c2"), token(2, "c3")];
        let request = JoinRequest {
            name: "c2".parse().unwrap(),
            address: "127.0.0.1:9002".parse().unwrap(),
            certificate: certificate("c2"),
            schema_internal_version: 1,
            schema_external_version: 0,
            extensions: vec!["a".into()],
            secret: tokens[0].secret.clone(),
        };
        Fixture {
            cluster: Level { internal: 1, external: 0, extensions: 1 },
            tokens,
            members: vec![row(1, "c1", 9001, RowRole::Voter, None)],
            own: Versions { schema_internal: 1, schema_external: 0, extensions: vec!["a".into()] },
            request,
        }
    }

    impl Fixture {
        fn admit(&self) -> Result<Admission, Refusal> {
            let situation = Situation {
                tokens: &self.tokens,
                members: &self.members,
                own: &self.own,
                cluster: self.cluster,
                now: Timestamp::now(),
            };
            admit(&situation, &self.request, Fingerprint::of_pem(&self.request.certificate).unwrap())
        }
    }

    #[test]
    fn an_invited_joiner_is_admitted() {
        assert_eq!(fixture().admit(), Ok(Admission { token_id: 1, earlier: None }));
    }

    #[test]
    fn a_second_try_has_the_row_of_the_first_or_replaces_it() {
        let mut f = fixture();
        f.members.push(row(7, "c2", 9002, RowRole::Pending, Some(1)));
        assert_eq!(f.admit(), Ok(Admission { token_id: 1, earlier: Some(Earlier::Other(7)) }), "another certificate");
        f.members[1].certificate = f.request.certificate.clone();
        assert_eq!(f.admit(), Ok(Admission { token_id: 1, earlier: Some(Earlier::Same(7)) }));
        f.members[1].address = "127.0.0.1:9009".parse().unwrap();
        assert_eq!(f.admit(), Ok(Admission { token_id: 1, earlier: Some(Earlier::Other(7)) }), "another address");
        f.members[1].role = RowRole::Voter;
        assert!(matches!(f.admit(), Err(Refusal::NameTaken { .. })));
    }

    #[test]
    fn refusals_name_the_reason() {
        let refused = |change: &dyn Fn(&mut Fixture)| {
            let mut f = fixture();
            change(&mut f);
            f.admit().unwrap_err()
        };
        assert!(matches!(refused(&|f| f.request.secret = new_secret()), Refusal::TokenUnknown { .. }));
        assert!(matches!(refused(&|f| f.request.secret = "".into()), Refusal::TokenUnknown { .. }));
        assert!(matches!(
            refused(&|f| f.request.secret = f.tokens[1].secret.clone()),
            Refusal::TokenForOther { token_name, .. } if token_name == "c3"
        ));
        assert!(matches!(
            refused(&|f| f.tokens[0].expires_at = "2020-01-01T00:00:00Z".parse().unwrap()),
            Refusal::TokenExpired { .. }
        ));
        assert!(matches!(refused(&|f| f.members[0].name = "c2".parse().unwrap()), Refusal::NameTaken { .. }));
        assert!(matches!(
            refused(&|f| f.request.address = f.members[0].address),
            Refusal::AddressTaken { member, .. } if member == "c1"
        ));
        assert!(matches!(
            refused(&|f| f.request.certificate = f.members[0].certificate.clone()),
            Refusal::CertificateTaken { member } if member == "c1"
        ));
        assert!(matches!(refused(&|f| f.members[0].schema_external = 1), Refusal::Upgrading));
        assert!(matches!(refused(&|f| f.cluster.internal = 0), Refusal::Upgrading));
        assert!(matches!(
            refused(&|f| f.request.schema_internal_version = 2),
            Refusal::VersionDiffers { joiner, cluster, .. } if joiner == "2" && cluster == "1"
        ));
        assert!(matches!(
            refused(&|f| f.request.extensions.clear()),
            Refusal::VersionDiffers { joiner, cluster, .. } if joiner == "[]" && cluster == "[a]"
        ));
    }

    #[test]
    fn the_steps_of_a_join_in_order() {
        let mut step = Step::Record;
        let mut taken = vec![step];
        while !step.is_final() {
            step = step.next(Outcome::Done);
            taken.push(step);
        }
        assert_eq!(taken, [Step::Record, Step::Open, Step::Confirm, Step::Await, Step::Commit, Step::Joined]);
    }

    /// A joiner that may vote throws its log away on the leader's word alone.
    #[test]
    fn after_a_confirm_only_the_leader_can_undo_the_join() {
        for step in [Step::Reopen, Step::Confirm, Step::Await, Step::Commit, Step::Withdraw] {
            assert_eq!(step.next(Outcome::Failed), Step::Suspended, "{step:?}");
        }
        assert_eq!(Step::Commit.next(Outcome::Refused), Step::Withdraw, "the leader is asked first");
        assert_eq!(Step::Withdraw.next(Outcome::Done), Step::Undo);
        for step in [Step::Record, Step::Open, Step::Confirm, Step::Await, Step::Withdraw] {
            assert_eq!(step.next(Outcome::Gone), Step::Undo, "{step:?}");
        }
        for step in [Step::Record, Step::Open] {
            assert_eq!(step.next(Outcome::Failed), Step::Undo, "{step:?}");
        }
        assert_eq!(Step::Undo.next(Outcome::Done), Step::NotJoined);
    }

    /// A member can be removed while its join waits for something: then that never comes.
    #[test]
    fn whoever_waits_for_the_cluster_asks_again_whether_it_is_still_wanted() {
        for (step, next) in [
            (Step::Reopen, Step::Reopen),
            (Step::Confirm, Step::Confirm),
            (Step::Await, Step::Confirm),
            (Step::Commit, Step::Confirm),
            (Step::Withdraw, Step::Commit),
            (Step::Undo, Step::Undo),
        ] {
            assert_eq!(step.again(), next);
        }
    }
}
