//! A cluster of daemons.

use microcluster_client::{Error, MemberStatus, Role, Timestamp, Verdict};

use crate::{Daemon, eventually};

/// Daemons `c1`, `c2`, … that are one cluster.
#[derive(Debug)]
pub struct TestCluster {
    /// The daemons, in the order in which they came in.
    pub members: Vec<Daemon>,
}

impl TestCluster {
    /// Bootstraps one daemon and has the others join it, one after another.
    pub async fn start(count: usize) -> Self {
        TestCluster::of((1..=count).map(|number| Daemon::new(&format!("c{number}"))).collect()).await
    }

    /// Makes daemons that do not run yet one cluster: the first one is bootstrapped, the others join it.
    pub async fn of(mut daemons: Vec<Daemon>) -> Self {
        daemons.iter_mut().for_each(Daemon::spawn);
        let mut cluster = TestCluster { members: Vec::new() };
        for mut daemon in daemons {
            daemon.wait_ready().await;
            match cluster.members.first() {
                None => daemon.bootstrap().await,
                Some(first) => {
                    let token = first.token(daemon.name()).await;
                    daemon.join(&token).await.unwrap_or_else(|e| panic!("{} cannot join: {e}", daemon.name()));
                }
            }
            cluster.members.push(daemon);
        }
        cluster
    }

    /// Starts a new daemon and has it join.
    pub async fn add(&mut self, name: &str) -> &Daemon {
        let daemon = Daemon::start(name).await;
        let token = self.members[0].token(daemon.name()).await;
        daemon.join(&token).await.expect("the join");
        self.members.push(daemon);
        &self.members[self.members.len() - 1]
    }

    /// The place of the member that leads, as a majority sees it.
    pub async fn leader(&self) -> usize {
        eventually("a leader", async || {
            let mut seen = Vec::new();
            for member in self.running() {
                if let Ok(status) = member.status().await
                    && status.quorum
                    && let Some(leader) = status.leader
                {
                    seen.push(leader.name);
                }
            }
            let place = |name| self.members.iter().position(|member| member.name() == name);
            match seen.first() {
                Some(first) if seen.len() * 2 > self.members.len() && seen.iter().all(|name| name == first) => {
                    place(first).ok_or_else(|| format!("{first} leads"))
                }
                _ => Err(format!("seen are {seen:?}")),
            }
        })
        .await
    }

    /// The place of a member that runs and does not lead.
    pub async fn follower(&self) -> usize {
        let leader = self.leader().await;
        let follows = |(place, member): (usize, &Daemon)| (place != leader && member.is_running()).then_some(place);
        self.members.iter().enumerate().find_map(follows).expect("a follower")
    }

    /// The members whose processes run.
    pub fn running(&self) -> impl Iterator<Item = &Daemon> {
        self.members.iter().filter(|member| member.is_running())
    }

    /// A member that runs.
    #[must_use]
    pub fn any(&self) -> &Daemon {
        self.running().next().expect("one that runs")
    }

    /// Waits until every member sees exactly these members, all online, up to three of them voters.
    pub async fn settled(&self, names: &[&str]) {
        for member in self.running() {
            let what = format!("{} sees the members {names:?}", member.name());
            eventually(&what, async || {
                let members = member.members().await.map_err(|e| e.to_string())?;
                let seen: Vec<_> = members.iter().map(|member| member.name.as_str()).collect();
                let online = members.iter().all(|member| member.status == MemberStatus::Online);
                let voters = members.iter().filter(|member| member.role == Role::Voter).count();
                let is_so = seen == names && online && voters == names.len().min(3);
                is_so.then_some(()).ok_or_else(|| format!("{members:?}"))
            })
            .await;
        }
    }

    /// Waits until a comparison finds that so many members hold the same. Only one that is silent is asked again: one that differs
    /// is rebuilt by the comparison, and would be the same the next time.
    ///
    /// # Panics
    /// When one holds something else.
    pub async fn all_same(&self, count: usize) {
        eventually("all members hold the same", async || {
            let found = self.any().client().verify_database().await.map_err(|e| e.to_string())?;
            let with = |verdict: Verdict| found.members.iter().filter(|member| member.verdict == verdict).count();
            assert_eq!(with(Verdict::Different) + with(Verdict::Damaged), 0, "{found:?}");
            if with(Verdict::Same) == count { Ok(()) } else { Err(format!("{found:?}")) }
        })
        .await;
    }

    /// Waits until the replica of every member that runs holds the same.
    pub async fn replicas_agree(&self) {
        eventually("the replicas agree", async || -> Result<(), String> {
            let error = |e: Error| e.to_string();
            let expected = self.any().dump().await.map_err(error)?;
            for member in self.running() {
                let found = member.dump().await.map_err(error)?;
                if let Some((found, expected)) = difference(&found, &expected) {
                    let (name, other) = (member.name(), self.any().name());
                    return Err(format!("{name} has {found:.300}, {other} has {expected:.300}"));
                }
            }
            Ok(())
        })
        .await;
    }
}

/// The first lines that differ in more than a time: heartbeats are noted while one looks.
fn difference<'a>(a: &'a str, b: &'a str) -> Option<(&'a str, &'a str)> {
    const END: &str = "nothing more";
    let (mut a, mut b) = (a.lines(), b.lines());
    loop {
        match (a.next(), b.next()) {
            (None, None) => return None,
            (Some(left), Some(right)) if left == right || without_times(left).eq(without_times(right)) => {}
            (left, right) => return Some((left.unwrap_or(END), right.unwrap_or(END))),
        }
    }
}

/// The texts in a line of SQL and what is between them, but for those that are times.
fn without_times(line: &str) -> impl Iterator<Item = &str> {
    line.split('\'').filter(|text| text.parse::<Timestamp>().is_err())
}
