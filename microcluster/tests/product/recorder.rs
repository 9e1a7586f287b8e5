//! Hooks that write down that they ran, and fail where a test says so.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};

use microcluster::{DaemonConfig, Error, Hooks, InitConfig, MemberLocal, Name, Result, Role, RoleStatus, State};

/// How a hook fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    Error,
    Panic,
    Hang,
}

/// What the hooks of all members did, in their order, and how they are to fail.
#[derive(Clone, Default)]
pub struct Journal(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    lines: Vec<String>,
    faults: HashMap<(String, &'static str), Fault>,
}

impl Journal {
    /// What was written since this was last asked.
    pub fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap().lines)
    }

    /// The same, for hooks that run at the same time on several members.
    pub fn take_sorted(&self) -> Vec<String> {
        let mut lines = self.take();
        lines.sort();
        lines
    }

    /// What was written so far.
    pub fn lines(&self) -> Vec<String> {
        self.0.lock().unwrap().lines.clone()
    }

    /// Has a hook of a member fail until [`Journal::heal`].
    pub fn fault(&self, member: &str, hook: &'static str, fault: Fault) {
        self.0.lock().unwrap().faults.insert((member.into(), hook), fault);
    }

    pub fn heal(&self) {
        self.0.lock().unwrap().faults.clear();
    }
}

/// The hooks of one member.
pub struct Recorder {
    member: String,
    journal: Journal,
}

impl Recorder {
    pub fn new(member: &str, journal: &Journal) -> Recorder {
        Recorder { member: member.into(), journal: journal.clone() }
    }

    async fn ran(&self, state: &State, hook: &'static str, detail: &str) -> Result<()> {
        // Beside what it is told: whether it has the database, and as whom.
        let place = match (state.database(), state.name()) {
            (Ok(_), Some(name)) => {
                assert_eq!(name.as_str(), self.member);
                ""
            }
            (Err(_), None) => " (no member)",
            (database, name) => panic!("{database:?} for {name:?}", database = database.is_ok()),
        };
        let fault = {
            let mut inner = self.journal.0.lock().unwrap();
            inner.lines.push(format!("{} {hook}{detail}{place}", self.member));
            inner.faults.get(&(self.member.clone(), hook)).copied()
        };
        match fault {
            None => Ok(()),
            Some(Fault::Error) => Err(Error::conflict(format!("{} has no room", self.member))),
            Some(Fault::Panic) => panic!("on purpose"),
            Some(Fault::Hang) => std::future::pending().await,
        }
    }
}

fn zone(config: &InitConfig) -> String {
    config.get("zone").map(|zone| format!(" {zone}")).unwrap_or_default()
}

impl Hooks for Recorder {
    async fn pre_init(&self, state: &State, bootstrap: bool, config: &InitConfig) -> Result<()> {
        let which = if bootstrap { "bootstrap" } else { "join" };
        self.ran(state, "pre_init", &format!(" {which}{}", zone(config))).await
    }

    async fn post_bootstrap(&self, state: &State, config: &InitConfig) -> Result<()> {
        let database = state.database()?;
        database.batch(vec![microcluster::db::Statement::new("CREATE TABLE zones (zone TEXT)")]).await?;
        self.ran(state, "post_bootstrap", &zone(config)).await
    }

    async fn pre_join(&self, state: &State, config: &InitConfig) -> Result<()> {
        self.ran(state, "pre_join", &zone(config)).await
    }

    async fn post_join(&self, state: &State, config: &InitConfig) -> Result<()> {
        state.database()?.execute("INSERT INTO zones (zone) VALUES (?1)", [zone(config)]).await?;
        self.ran(state, "post_join", &zone(config)).await
    }

    async fn on_start(&self, state: &State) -> Result<()> {
        self.ran(state, "on_start", "").await
    }

    async fn on_stop(&self, state: &State) -> Result<()> {
        self.ran(state, "on_stop", "").await
    }

    async fn pre_remove(&self, state: &State, force: bool) -> Result<()> {
        self.ran(state, "pre_remove", if force { " force" } else { "" }).await
    }

    async fn post_remove(&self, state: &State, force: bool) -> Result<()> {
        self.ran(state, "post_remove", if force { " force" } else { "" }).await
    }

    async fn on_new_member(&self, state: &State, member: &MemberLocal) -> Result<()> {
        // The cluster can be written to while somebody joins.
        state.database()?.execute("INSERT INTO zones (zone) VALUES (?1)", [member.name.as_str()]).await?;
        self.ran(state, "on_new_member", &format!(" {}", member.name)).await
    }

    async fn on_heartbeat(&self, state: &State, roles: &BTreeMap<Name, RoleStatus>) -> Result<()> {
        let role = |role: Option<Role>| role.map_or("none", Role::as_str);
        let detail: String = roles
            .iter()
            .map(|(name, status)| format!(" {name}:{}>{}", role(status.before), role(status.after)))
            .collect();
        self.ran(state, "on_heartbeat", &detail).await
    }

    async fn on_daemon_config_update(&self, state: &State, config: &DaemonConfig) -> Result<()> {
        self.ran(state, "on_daemon_config_update", &format!(" {}", config.failure_domain)).await
    }
}
