//! The product: a resource that fans out to all members, a table, API extensions, and hooks that say when they run.

mod hooks;

use std::time::Duration;

use http::Method;
use microcluster::client::Address;
use microcluster::{Builder, Endpoint, Error, Json, Notification, Resources, Result, Server, State};
use serde::{Deserialize, Serialize};

/// How long one member may take to answer.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The schema updates, oldest first. A new version of the product adds to the end.
const SCHEMA: [&str; 1] = [
    "CREATE TABLE extended_table (id INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT NOT NULL UNIQUE, value TEXT NOT NULL)",
];

/// A message from one member to all others.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Extended {
    /// Who sends it.
    pub sender: Address,
    /// What it says.
    pub message: String,
}

/// Makes the product out of a daemon.
pub fn product(builder: Builder) -> Builder {
    let resources = Resources::at("1.0").endpoint(Endpoint::new("extended").post(extended_post));
    builder
        .version(env!("CARGO_PKG_VERSION"))
        .schema(SCHEMA)
        .api_extensions(["custom_extension_a_0", "custom_extension_a_1"])
        .hooks(hooks::LoggingHooks)
        .server("extended", Server::core_api().serve_unix().resources(resources))
}

/// POST `/1.0/extended`: passes the message on to every other member, and answers with a line for each that received it.
async fn extended_post(
    state: State,
    Notification(is_passed_on): Notification,
    Json(message): Json<Extended>,
) -> Result<Json<String>> {
    let own = state.address().ok_or_else(|| Error::unavailable("this daemon is no member"))?;
    let Extended { sender, message } = message;
    if is_passed_on {
        return Ok(Json(format!(
            "cluster member at address \"{own}\" received message {message:?} from cluster member at address \"{sender}\""
        )));
    }
    // Whoever the client is, it is this member that tells the others.
    let message = Extended { sender: own, message };
    let connect = state.connect()?;
    let answers = connect.query_all(true, TIMEOUT, |member| {
        let message = message.clone();
        async move { member.client.query::<String>(Method::POST, "/1.0/extended", message).await }
    });
    let mut lines = String::new();
    for (name, answer) in answers.await {
        match answer {
            Ok(line) => lines.push_str(&format!("{line}\n")),
            Err(error) => lines.push_str(&format!("cluster member {name} did not answer: {error}\n")),
        }
    }
    Ok(Json(lines))
}
