//! Members that ask each other.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use http::Method;
use microcluster::testing::{Cluster, eventually};
use microcluster::{Builder, Endpoint, Json, MemberClient, Notification, Resources, Result, Server, State, action};
use microcluster_client::Error;

/// Answers with its own name and, unless it is part of a fan-out, with what the others answer.
async fn names(state: State, Notification(is_fan_out): Notification) -> Result<Json<Vec<String>>> {
    let mut names = vec![state.name().map(|name| name.to_string()).unwrap_or_default()];
    if !is_fan_out {
        let connect = state.connect()?;
        let asked = connect.query_all(true, Duration::from_secs(5), |member| async move {
            member.client.query::<Vec<String>>(Method::GET, "/1.0/names", ()).await
        });
        for (name, answer) in asked.await {
            names.extend(answer.unwrap_or_else(|e| vec![format!("{name}: {e}")]));
        }
    }
    Ok(Json(names))
}

fn product(builder: Builder) -> Builder {
    let names = Endpoint::new("names").get(action(names));
    builder.server("names", Server::core_api().serve_unix().resources(Resources::at("1.0").endpoint(names)))
}

#[tokio::test]
async fn a_fan_out_reaches_every_member_once() {
    let mut cluster = Cluster::start(3, product).await;
    let ask = async |client: microcluster_client::Client| {
        client.query::<Vec<String>>(Method::GET, "/1.0/names", ()).await.unwrap()
    };
    assert_eq!(ask(cluster.member(1).client()).await, ["n2", "n1", "n3"]);
    cluster.member_mut(2).kill();
    let answers = ask(cluster.member(0).client()).await;
    assert_eq!(answers[..2], ["n1", "n2"]);
    assert!(answers[2].starts_with("n3: "), "{answers:?}");
}

/// One after the other, in the order of their names; one that hangs costs its time and no more.
#[tokio::test]
async fn members_can_be_asked_one_after_the_other() {
    let mut cluster = Cluster::start(3, product).await;
    cluster.member_mut(1).pause();
    let connect = cluster.member(0).state().connect().unwrap();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let (timeout, begun) = (Duration::from_millis(500), Instant::now());
    let query = |member: MemberClient| {
        let asked = asked.clone();
        async move {
            asked.lock().unwrap().push(format!("{} begins", member.name));
            let answer = member.client.query::<Vec<String>>(Method::GET, "/1.0/names", ()).await;
            asked.lock().unwrap().push(format!("{} ends", member.name));
            answer
        }
    };
    let answers = connect.query_all(false, timeout, query).await;
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    assert_eq!(answers.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["n2", "n3"]);
    assert!(matches!(&answers[0].1, Err(Error::Timeout { after, .. }) if *after == timeout), "{:?}", answers[0].1);
    assert_eq!(*answers[1].1.as_ref().unwrap(), ["n3"], "it is part of a fan-out");
    let asked = asked.lock().unwrap();
    let place = |line: &str| asked.iter().position(|asked| asked == line);
    assert_eq!(place("n2 begins"), Some(0));
    assert!(place("n3 begins") > place("n2 begins") && place("n3 ends") == Some(asked.len() - 1), "{asked:?}");
    drop(asked);
    cluster.member_mut(1).resume();
}

#[tokio::test]
async fn members_are_found_by_name_address_and_as_leader() {
    let cluster = Cluster::start(2, product).await;
    let connect = cluster.member(1).state().connect().unwrap();
    let first = cluster.member(0);
    assert_eq!(connect.member("n1").unwrap().address, first.address());
    assert_eq!(connect.member(&first.address().to_string()).unwrap().name, *first.name());
    assert_eq!(connect.leader().unwrap().name, *cluster.member(cluster.leader().await).name());
    assert_eq!(connect.member("n3").unwrap_err().status(), 404);
    let others: Vec<_> = connect.cluster().into_iter().map(|member| member.name.to_string()).collect();
    assert_eq!(others, ["n1"]);
    let app = cluster.member(0).app();
    eventually("both are on its disk", async || match app.local_members().await.unwrap().members.len() {
        2 => Ok(()),
        other => Err(format!("{other} are")),
    })
    .await;
    let status = connect.member("n2").unwrap().client.status().await.unwrap();
    assert_eq!(status.name, "n2", "this member itself too");
}
