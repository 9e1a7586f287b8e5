//! Whether a product's servers can be: names, addresses and paths, checked before anything listens.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use microcluster_client::{Address, AddressError, Name, NameError};

use super::server::{OwnPlace, Place, Server};
use crate::api::Route;

/// Names that the daemon uses itself.
const RESERVED: [&str; 4] = ["cluster", "core", "server", "unix"];
/// The first segment of everything that is the daemon's own.
const CORE: &str = "core";

/// The servers of a product, found to fit together.
#[derive(Clone, Debug, Default)]
pub(crate) struct Described {
    /// What is served beside the Core API.
    pub core: Vec<Route>,
    /// The prefixes of that.
    pub roots: BTreeSet<String>,
    /// The listeners beside those of the daemon.
    pub additional: Vec<Additional>,
    /// The address that is open until bootstrap or join.
    pub pre_init: Option<Address>,
}

/// An additional server.
#[derive(Clone, Debug)]
pub(crate) struct Additional {
    pub name: Name,
    pub address: Address,
    pub dedicated: bool,
    pub pre_init: bool,
    pub drain_timeout: Option<Duration>,
    pub routes: Vec<Route>,
}

/// Why a product's description of its servers cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DescriptionError {
    #[error("{name:?} cannot be the name of a server: {source}")]
    Name { name: String, source: NameError },
    #[error("{name} cannot be the name of a server: the daemon uses it itself, as it does {}", RESERVED.join(", "))]
    Reserved { name: Name },
    #[error("there are two servers named {name}")]
    NameTwice { name: Name },
    #[error("the server {name} cannot listen on {address:?}: {source}")]
    Address { name: Name, address: String, source: AddressError },
    #[error("the server {name} needs a fixed port, not port 0")]
    PortZero { name: Name },
    #[error(
        "the servers {one} on {one_address} and {other} on {address} cannot both listen: one is in the way of the other"
    )]
    AddressTwice { one: Name, one_address: Address, other: Name, address: Address },
    #[error("the pre-init address cannot be {address:?}: {source}")]
    PreInit { address: String, source: AddressError },
    #[error("the server {name} cannot listen on {address}: the pre-init address is {pre_init}")]
    PreInitTwice { name: Name, address: Address, pre_init: Address },
    #[error("the server {name} has no resources")]
    Empty { name: Name },
    #[error("the endpoint {path} of the server {name} has no action: give it one with get, post, put, patch or delete")]
    NoAction { name: Name, path: String },
    #[error("the path {path} of the server {name} cannot be: everything below /core is the daemon's own")]
    Core { name: Name, path: String },
    #[error(
        "the path {path} of the server {name} cannot be: it has to begin with a fixed segment, as the Core API is served beside it"
    )]
    Vague { name: Name, path: String },
    #[error("the path {path} of the server {name} is none: {reason}")]
    Path { name: Name, path: String, reason: String },
    #[error("the paths {path} of the server {name} and {other_path} of the server {other} are the same")]
    PathTwice { name: Name, path: String, other: Name, other_path: String },
    #[error(
        "the endpoint {path} of the server {name} cannot be passed on to another member: only what extends the Core API is served on the cluster address"
    )]
    PassedOn { name: Name, path: String },
}

/// Checks all servers of a product, and the address that is open until bootstrap or join.
pub(crate) fn check(servers: &[(String, Server)], pre_init: Option<&str>) -> Result<Described, DescriptionError> {
    let mut described = Described { pre_init: pre_init.map(parse_pre_init).transpose()?, ..Described::default() };
    let mut names = BTreeSet::new();
    let mut core = Paths::default();
    for (name, server) in servers {
        let parsed = name.parse::<Name>();
        let name = parsed.map_err(|source| DescriptionError::Name { name: name.clone(), source })?;
        if RESERVED.contains(&name.as_str()) {
            return Err(DescriptionError::Reserved { name });
        }
        if !names.insert(name.clone()) {
            return Err(DescriptionError::NameTwice { name });
        }
        check_resources(&name, server)?;
        match &server.place {
            Place::CoreApi { .. } => {
                for resources in &server.resources {
                    for path in resources.paths() {
                        check_beside_core(&name, &path)?;
                        core.add(&name, path)?;
                    }
                    described.roots.insert(resources.root());
                }
                described.core.extend(server.routes());
            }
            Place::Own(own) => {
                let mut paths = Paths::default();
                server
                    .resources
                    .iter()
                    .flat_map(|resources| resources.paths())
                    .try_for_each(|path| paths.add(&name, path))?;
                let address = check_address(&name, own)?;
                check_free(&name, address, &described)?;
                described.additional.push(Additional {
                    name,
                    address,
                    dedicated: own.dedicated,
                    pre_init: server.pre_init,
                    drain_timeout: own.drain_timeout,
                    routes: server.routes(),
                });
            }
        }
    }
    Ok(described)
}

fn check_resources(name: &Name, server: &Server) -> Result<(), DescriptionError> {
    if server.resources.iter().all(|resources| resources.is_empty()) {
        return Err(DescriptionError::Empty { name: name.clone() });
    }
    for resources in &server.resources {
        if let Some(path) = resources.without_action() {
            return Err(DescriptionError::NoAction { name: name.clone(), path });
        }
        if let Some(path) = resources.mounted_at_variable() {
            let reason = "a service is mounted at a path without variables".into();
            return Err(DescriptionError::Path { name: name.clone(), path, reason });
        }
        if matches!(server.place, Place::Own(_))
            && let Some(path) = resources.passed_on()
        {
            return Err(DescriptionError::PassedOn { name: name.clone(), path });
        }
    }
    Ok(())
}

fn check_beside_core(name: &Name, path: &str) -> Result<(), DescriptionError> {
    let first = path.split('/').find(|segment| !segment.is_empty()).unwrap_or_default();
    if first == CORE {
        return Err(DescriptionError::Core { name: name.clone(), path: path.to_owned() });
    }
    if first.is_empty() || first.contains('{') {
        return Err(DescriptionError::Vague { name: name.clone(), path: path.to_owned() });
    }
    Ok(())
}

fn check_address(name: &Name, own: &OwnPlace) -> Result<Address, DescriptionError> {
    let parsed = own.address.parse::<Address>();
    let address = parsed.map_err(|source| DescriptionError::Address {
        name: name.clone(),
        address: own.address.clone(),
        source,
    })?;
    if address.port() == 0 {
        return Err(DescriptionError::PortZero { name: name.clone() });
    }
    Ok(address)
}

fn parse_pre_init(address: &str) -> Result<Address, DescriptionError> {
    address.parse().map_err(|source| DescriptionError::PreInit { address: address.to_owned(), source })
}

/// Whether no listener is in the way of this one.
fn check_free(name: &Name, address: Address, described: &Described) -> Result<(), DescriptionError> {
    if let Some(pre_init) = described.pre_init.filter(|pre_init| pre_init.overlaps(address)) {
        return Err(DescriptionError::PreInitTwice { name: name.clone(), address, pre_init });
    }
    match described.additional.iter().find(|one| one.address.overlaps(address)) {
        None => Ok(()),
        Some(one) => Err(DescriptionError::AddressTwice {
            one: one.name.clone(),
            one_address: one.address,
            other: name.clone(),
            address,
        }),
    }
}

/// The paths of one listener, with whose they are, in the router that will look them up.
#[derive(Default)]
struct Paths {
    router: matchit::Router<()>,
    owners: BTreeMap<String, Name>,
}

impl Paths {
    fn add(&mut self, name: &Name, path: String) -> Result<(), DescriptionError> {
        let wrong = |reason: String| DescriptionError::Path { name: name.clone(), path: path.clone(), reason };
        if path.split('/').any(|segment| segment.starts_with(':') || segment.starts_with('*')) {
            return Err(wrong("a variable segment is written {name}, the rest of a path {*name}".into()));
        }
        match self.router.insert(&path, ()) {
            Ok(()) => {}
            Err(matchit::InsertError::Conflict { with }) => {
                let other = self.owners.get(&with).unwrap_or(name).clone();
                return Err(DescriptionError::PathTwice { name: name.clone(), path, other, other_path: with });
            }
            Err(e) => return Err(wrong(e.to_string())),
        }
        self.owners.insert(path, name.clone());
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::extension::{Endpoint, Resources, Response, action};

    async fn nothing() -> Response {
        Response::empty()
    }

    fn at(prefix: &str, path: &str) -> Resources {
        Resources::at(prefix).endpoint(Endpoint::new(path).get(nothing))
    }

    fn refused(servers: Vec<(&str, Server)>) -> String {
        let servers: Vec<_> = servers.into_iter().map(|(name, server)| (name.to_owned(), server)).collect();
        check(&servers, Some("127.0.0.1:8000")).map(|_| ()).unwrap_err().to_string()
    }

    fn beside_core(resources: Resources) -> Server {
        Server::core_api().resources(resources).into()
    }

    fn own(address: &str) -> Server {
        Server::listen(address).resources(at("", "metrics")).into()
    }

    #[test]
    fn the_daemons_own_paths_are_all_below_core() {
        for route in crate::api::table() {
            assert!(route.path == "/" || route.path.starts_with("/core/"), "{}", route.path);
        }
    }

    #[test]
    fn what_fits_together_is_taken() {
        let servers = vec![
            ("kv".to_owned(), beside_core(at("1.0", "kv/{key}"))),
            ("files".to_owned(), beside_core(at("1.0", "kv"))),
            ("metrics.internal".to_owned(), own("127.0.0.1:9443")),
        ];
        let described = check(&servers, None).unwrap();
        assert_eq!(described.core.len(), 2);
        assert_eq!(described.roots, ["/1.0".to_owned()].into());
        assert_eq!(described.additional[0].name, "metrics.internal");
    }

    /// Each message names what was wrong, and both sides where there are two.
    #[test]
    fn what_does_not_fit_is_named() {
        type Case<'a> = (Vec<(&'a str, Server)>, &'a [&'a str]);
        let cases: Vec<Case<'_>> = vec![
            (vec![("a b", own("127.0.0.1:1"))], &["a b"]),
            (vec![("unix", own("127.0.0.1:1"))], &["unix", "core"]),
            (vec![("core", beside_core(at("1.0", "x")))], &["core"]),
            (vec![("a", own("127.0.0.1:1")), ("a", own("127.0.0.1:2"))], &["two servers named a"]),
            (vec![("a", own("127.0.0.1:1")), ("b", own("127.0.0.1:1"))], &["a", "b", "127.0.0.1:1"]),
            (vec![("a", own("0.0.0.0:1")), ("b", own("127.0.0.1:1"))], &["a", "b", "0.0.0.0:1", "127.0.0.1:1"]),
            (vec![("a", own("10.0.0.1:1")), ("b", own("[::]:1"))], &["a", "b", "[::]:1", "10.0.0.1:1"]),
            (vec![("a", own("127.0.0.1:8000"))], &["a", "pre-init", "127.0.0.1:8000"]),
            (vec![("a", own("0.0.0.0:8000"))], &["a", "pre-init", "0.0.0.0:8000", "127.0.0.1:8000"]),
            (vec![("a", own("localhost:1"))], &["a", "localhost:1"]),
            (vec![("a", own("127.0.0.1:0"))], &["a", "port 0"]),
            (vec![("a", beside_core(Resources::at("1.0")))], &["a", "no resources"]),
            (vec![("a", Server::core_api().into())], &["a", "no resources"]),
            (
                vec![("a", beside_core(Resources::at("1.0").endpoint(Endpoint::new("x"))))],
                &["a", "/1.0/x", "no action"],
            ),
            (vec![("a", beside_core(at("core/2.0", "x")))], &["a", "/core/2.0/x"]),
            (vec![("a", beside_core(at("", "core")))], &["a", "/core"]),
            (vec![("a", beside_core(at("", "{x}")))], &["a", "/{x}", "fixed"]),
            (vec![("a", beside_core(at("", "")))], &["a", "fixed"]),
            (vec![("a", beside_core(at("1.0", ":x")))], &["a", "/1.0/:x", "{name}"]),
            (vec![("a", beside_core(at("1.0", "{x")))], &["a", "/1.0/{x"]),
            (
                vec![("a", beside_core(at("1.0", "x/{y}"))), ("b", beside_core(at("1.0", "x/{z}")))],
                &["server a", "server b", "/1.0/x/{y}", "/1.0/x/{z}"],
            ),
            (
                vec![(
                    "a",
                    Server::listen("127.0.0.1:1")
                        .resources(Resources::at("").endpoint(Endpoint::new("x").get(action(nothing).proxy_target())))
                        .into(),
                )],
                &["a", "/x", "passed on"],
            ),
        ];
        for (servers, named) in cases {
            let message = refused(servers);
            assert!(named.iter().all(|named| message.contains(named)), "{message} names {named:?}");
        }
    }
}
