//! What a list says of a member that is not as it should be.

use cluster_tests::{TestCluster, eventually};
use microcluster_client::MemberStatus;

/// A machine that was made anew and begins a cluster of its own at the address of a member: with another certificate the members
/// do not trust it, with the one of before it does not trust them.
#[tokio::test]
async fn who_answers_at_the_address_of_a_member_and_is_none_is_not_trusted() {
    let mut cluster = TestCluster::start(3).await;
    cluster.settled(&["c1", "c2", "c3"]).await;
    shown(&cluster, MemberStatus::Online).await;
    let identity = ["server.crt", "server.key"].map(|file| (file, cluster.members[2].read(file)));
    for keeps_identity in [false, true] {
        let daemon = &mut cluster.members[2];
        daemon.kill();
        shown(&cluster, MemberStatus::Unreachable).await;
        let daemon = &mut cluster.members[2];
        daemon.wipe();
        if keeps_identity {
            std::fs::create_dir_all(daemon.dir()).unwrap();
            for (file, text) in &identity {
                std::fs::write(daemon.dir().join(file), text).unwrap();
            }
        }
        daemon.start_again().await;
        daemon.bootstrap().await;
        shown(&cluster, MemberStatus::NotTrusted).await;
    }
}

/// Waits until the first two members show the third like this, and each other online.
async fn shown(cluster: &TestCluster, expected: MemberStatus) {
    for member in &cluster.members[..2] {
        let what = format!("{} shows c3 as {expected:?}", member.name());
        eventually(&what, async || {
            let members = member.members().await.map_err(|e| e.to_string())?;
            let seen: Vec<_> = members.iter().map(|member| member.status).collect();
            let is_so = seen == [MemberStatus::Online, MemberStatus::Online, expected];
            is_so.then_some(()).ok_or_else(|| format!("{seen:?}"))
        })
        .await;
    }
}
