//! One recorded exchange: sent again, with the names, addresses and certificates of our own cluster.

use std::fmt;
use std::path::Path;

use cluster_tests::{Answer, Caller, Daemon, Payload, Target, TestCluster, address_free, stranger};
use microcluster_client::{Member, Name};
use serde_json::{Value, json};

use super::shape;

/// Who the exchanges are sent to.
pub(super) struct World {
    /// A daemon that is not initialised.
    pub fresh: Daemon,
    /// Three members, with what the recorded ones held.
    pub cluster: TestCluster,
}

/// A line of the recording.
pub(super) struct Exchange {
    /// Its number in the file, from 1.
    line: usize,
    case: String,
    over: String,
    request: String,
    body: Value,
    status: u16,
    response: Value,
}

/// How our answer differs.
#[derive(Debug)]
pub(super) enum Found {
    /// Another status.
    Status { ours: u16, recorded: u16, error: String },
    /// The same success with other content.
    Content(String),
}

/// All lines of the recording.
pub(super) fn recorded() -> Vec<Exchange> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("recorded-exchanges.jsonl");
    let text = std::fs::read_to_string(path).unwrap();
    let exchange = |(index, line): (usize, &str)| {
        let mut json: Value = serde_json::from_str(line).unwrap();
        let text = |json: &Value, key: &str| json[key].as_str().unwrap().to_owned();
        Exchange {
            line: index + 1,
            case: text(&json, "case"),
            over: text(&json, "over"),
            request: text(&json, "request"),
            status: u16::try_from(json["status"].as_u64().unwrap()).unwrap(),
            body: json["body"].take(),
            response: json["response"].take(),
        }
    };
    text.lines().enumerate().map(exchange).collect()
}

impl Exchange {
    /// Whether a pattern means this one: `case`, `case: request` or `case: request#status` where several
    /// have the same case. A `*` at an end of the case or the request stands for anything.
    pub fn is(&self, pattern: &str) -> bool {
        let (case, request) = pattern.split_once(": ").unwrap_or((pattern, "*"));
        let (request, status) = request.split_once('#').map_or((request, None), |(r, status)| (r, Some(status)));
        matches(case, &self.case)
            && matches(request, &self.request)
            && status.is_none_or(|status| status == self.status.to_string())
    }

    /// Who sent it.
    pub fn caller(&self) -> Caller {
        match self.over.split(", User-Agent").next().unwrap() {
            "unix" => Caller::Socket,
            "tls, certificate of a member" => Caller::Member,
            "tls, cluster certificate" => Caller::Cluster,
            "tls, certificate of a stranger" | "tls, joining member" => Caller::Stranger,
            "tls, no certificate" => Caller::Nobody,
            other => panic!("line {}: nobody known: {other}", self.line),
        }
    }

    /// Sends it and compares.
    pub async fn difference(&self, world: &World) -> Option<Found> {
        let answer = self.send(world).await;
        if answer.status != self.status {
            let error = serde_json::from_slice::<Value>(&answer.body)
                .map_or_else(|_| String::new(), |json| json["error"].as_str().unwrap_or_default().to_owned());
            return Some(Found::Status { ours: answer.status, recorded: self.status, error });
        }
        if self.status != 200 {
            assert!(!answer.error(self.status).is_empty());
            return None;
        }
        if self.response == json!("") {
            return (!answer.body.is_empty()).then(|| Found::Content(format!("{:?}", answer.body)));
        }
        let recorded = self.with_our_addresses(world, self.response["metadata"].clone());
        // Between members the recording was made while the cluster grew.
        let with_values = self.case != "member-to-member";
        shape::difference("metadata", &answer.metadata(), &recorded, with_values).map(Found::Content)
    }

    async fn send(&self, world: &World) -> Answer {
        let members = &world.cluster.members;
        let receiver = match (&*self.case, &*self.request) {
            (case, _) if case.starts_with("preinit-") => &world.fresh,
            ("init-on-follower-get-1.0", _) => &members[1],
            // A member is told itself that it was removed.
            (_, "PUT /core/internal/cluster/c3") => &members[2],
            _ => &members[0],
        };
        let target = match self.caller() {
            // The sender was not known to the receiver at that moment.
            Caller::Member if self.status == 403 => Target::new(receiver, Caller::Stranger),
            Caller::Member => Target::tls(receiver.address(), Some(&members[1].identity()), &receiver.trust()),
            caller => Target::new(receiver, caller),
        };
        let payload = match &self.body {
            Value::Null => Payload::none(),
            Value::Object(fields) if fields.contains_key("not-json") => {
                Payload::bytes(fields["not-json"].as_str().unwrap().to_owned())
            }
            body => Payload::json(&self.our_body(world, body.clone()).await),
        };
        let agent = self.over.split_once("User-Agent ").map_or("recorded", |(_, agent)| agent);
        target.send_with(&self.request, payload, &[("user-agent", agent)]).await
    }

    /// The body with what a client of our cluster would send.
    async fn our_body(&self, world: &World, body: Value) -> Value {
        let mut body = self.with_our_addresses(world, body);
        if self.request == "POST /core/internal/cluster" && body["name"].is_string() {
            let first = &world.cluster.members[0];
            self.be_a_joiner(first, &mut body).await;
        }
        body
    }

    /// Makes a joiner of the recording one of ours: the same version, a name and an address that are free, a
    /// certificate that carries the name, a token where the recorded one had one.
    async fn be_a_joiner(&self, first: &Daemon, body: &mut Value) {
        let own: Member = first.members().await.unwrap().remove(0);
        for (field, recorded, ours) in [
            ("schema_internal_version", 6, own.schema_internal_version),
            ("schema_external_version", 2, own.schema_external_version),
        ] {
            if body[field] == json!(recorded) {
                body[field] = json!(ours);
            }
        }
        if body["extensions"].as_array().is_some_and(|extensions| extensions.len() == 4) {
            body["extensions"] = json!(own.extensions);
        }
        if self.case == "member-to-member" {
            // The recorded joiners are members of our cluster already.
            body["name"] = json!(format!("new-{}", body["name"].as_str().unwrap()));
            body["address"] = json!(address_free().to_string());
        }
        let name: Name = body["name"].as_str().unwrap().parse().unwrap();
        if body["certificate"] == json!("<PEM>") {
            body["certificate"] = json!(stranger(name.as_str()).cert_pem);
        }
        if body["secret"] == json!("<HEX64>") {
            use base64::Engine;
            // A joiner that was refused came with the secret of somebody else, or of nobody.
            let secret = match self.status {
                200 => first.token(&name).await,
                404 => return,
                _ => first.token(&format!("for-line-{}", self.line).parse().unwrap()).await,
            };
            let content = base64::engine::general_purpose::STANDARD.decode(secret.expose()).unwrap();
            body["secret"] = serde_json::from_slice::<Value>(&content).unwrap()["secret"].take();
        }
    }

    /// The same JSON with the addresses of our members, and our machine's name.
    fn with_our_addresses(&self, world: &World, json: Value) -> Value {
        let mut text = json.to_string();
        for (index, member) in world.cluster.members.iter().enumerate() {
            text = text.replace(&format!("127.0.0.1:900{}", index + 1), &member.address().to_string());
        }
        let machine = rustix::system::uname();
        let machine = machine.nodename().to_string_lossy();
        text = text.replace(r#""name":"vm""#, &format!(r#""name":"{machine}""#));
        serde_json::from_str(&text).unwrap()
    }
}

impl fmt::Display for Exchange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}, {}: {} over {}", self.line, self.case, self.request, self.over)
    }
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Found::Status { ours, recorded, error } => write!(f, "{ours}, recorded is {recorded}; {error}"),
            Found::Content(what) => f.write_str(what),
        }
    }
}

fn matches(pattern: &str, text: &str) -> bool {
    match (pattern.strip_prefix('*'), pattern.strip_suffix('*')) {
        _ if pattern == "*" => true,
        (Some(end), None) => text.ends_with(end),
        (None, Some(start)) => text.starts_with(start),
        _ => pattern == text,
    }
}
