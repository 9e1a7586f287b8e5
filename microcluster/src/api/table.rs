//! The route table: every path of the Core API, with who may use it where and when.

use http::Method;

use super::routes::{Access, EVERYWHERE, Phase, Route, TLS, UNIX, UNIX_AND_TLS};
use super::{certificates, cluster, control, daemon, database, internal, openapi, sql, tokens};

/// Names, addresses, a token: little is needed to control a daemon.
const CONTROL_BODY_MAX: usize = 64 << 10;
/// Chains of certificates and a key.
const CERTIFICATE_BODY_MAX: usize = 256 << 10;
/// A script of statements.
const SQL_BODY_MAX: usize = 16 << 20;

/// All routes of the Core API.
pub(crate) fn table() -> Vec<Route> {
    use Access::{Joiner, Open, Socket, Token};
    use Method as M;
    use Phase::{Always, Current, Joining};
    vec![
        Route::new(M::GET, "/", EVERYWHERE, daemon::roots_list).access(Open).phase(Always),
        Route::new(M::GET, "/core/1.0", EVERYWHERE, daemon::server_show).access(Open).phase(Always),
        Route::new(M::GET, "/core/1.0/openapi.json", EVERYWHERE, openapi::description_show).access(Open).phase(Always),
        Route::new(M::GET, "/core/1.0/ready", EVERYWHERE, daemon::ready_show).phase(Always),
        Route::new(M::GET, "/core/1.0/daemon/config", UNIX_AND_TLS, daemon::config_show).target(),
        Route::new(M::PUT, "/core/1.0/daemon/config", UNIX_AND_TLS, daemon::config_replace).target(),
        Route::new(M::PATCH, "/core/1.0/daemon/config", UNIX_AND_TLS, daemon::config_change).target(),
        Route::new(M::GET, "/core/1.0/daemon/servers", UNIX_AND_TLS, daemon::servers_list).target(),
        Route::new(M::PUT, "/core/1.0/daemon/servers", UNIX_AND_TLS, daemon::servers_replace).target(),
        Route::new(M::GET, "/core/1.0/daemon/status", UNIX_AND_TLS, daemon::status_show).target(),
        // A joiner asks who it is that shows it a certificate which is of nobody it was told of.
        Route::new(M::GET, "/core/1.0/cluster", UNIX_AND_TLS, cluster::members_list).access(Joiner),
        Route::new(M::GET, "/core/1.0/cluster/{name}", UNIX_AND_TLS, cluster::member_show),
        Route::new(M::DELETE, "/core/1.0/cluster/{name}", UNIX_AND_TLS, cluster::member_remove).leader(),
        // Before initialisation for the daemon's own; the handler looks at that.
        Route::new(M::PUT, "/core/1.0/cluster/certificates/{name}", UNIX_AND_TLS, certificates::certificate_set)
            .phase(Always)
            .body_max(CERTIFICATE_BODY_MAX),
        Route::new(M::POST, "/core/1.0/database/verify", UNIX_AND_TLS, database::database_verify),
        Route::new(M::DELETE, "/core/1.0/tokens/{name}", UNIX_AND_TLS, tokens::token_revoke),
        Route::new(M::POST, "/core/control", UNIX, control::daemon_initialise)
            .access(Socket)
            .phase(Always)
            .body_max(CONTROL_BODY_MAX),
        Route::new(M::POST, "/core/control/shutdown", UNIX, control::daemon_shutdown).access(Socket).phase(Always),
        Route::new(M::GET, "/core/control/tokens", UNIX, tokens::tokens_list).access(Socket),
        Route::new(M::POST, "/core/control/tokens", UNIX, tokens::token_add).access(Socket).body_max(CONTROL_BODY_MAX),
        Route::new(M::POST, "/core/internal/cluster", UNIX_AND_TLS, cluster::joiner_admit)
            .access(Token)
            .leader()
            .body_max(CONTROL_BODY_MAX),
        Route::new(M::POST, "/core/internal/cluster/{name}/confirm", TLS, cluster::joiner_confirm)
            .access(Token)
            .leader()
            .body_max(CONTROL_BODY_MAX),
        Route::new(M::POST, "/core/internal/cluster/{name}/drop", TLS, cluster::joiner_drop)
            .access(Token)
            .leader()
            .body_max(CONTROL_BODY_MAX),
        Route::new(M::POST, "/core/internal/cluster/{name}/rebuild", TLS, cluster::member_readmit).leader(),
        Route::new(M::PUT, "/core/internal/cluster/{name}", TLS, cluster::member_reset),
        // A removed member asks, so it need not be one; the handler looks at its certificate.
        Route::new(M::GET, "/core/internal/membership", TLS, cluster::membership_show).access(Open),
        Route::new(M::GET, "/core/internal/sql", UNIX_AND_TLS, sql::database_dump).phase(Current),
        // The database takes a write with its first poll and finishes it, waited for or not.
        Route::new(M::POST, "/core/internal/sql", UNIX_AND_TLS, sql::statements_run)
            .phase(Current)
            .body_max(SQL_BODY_MAX)
            .attached()
            .untraced(),
        Route::new(M::POST, "/core/internal/database", UNIX_AND_TLS, database::transport_open)
            .access(Joiner)
            .phase(Joining)
            .attached(),
        Route::new(M::PATCH, "/core/internal/database", UNIX_AND_TLS, database::upgrade_notice),
        Route::new(M::POST, "/core/internal/certificates", UNIX_AND_TLS, certificates::certificates_nudge),
        Route::new(M::POST, "/core/internal/heartbeat", UNIX_AND_TLS, internal::heartbeat_run),
        Route::new(M::POST, "/core/internal/hooks/{hook}", UNIX_AND_TLS, internal::hook_run).target(),
        Route::new(M::POST, "/core/internal/truststore", UNIX_AND_TLS, internal::trust_nudge),
        Route::new(M::DELETE, "/core/internal/truststore/{name}", UNIX_AND_TLS, internal::trust_nudge_removed),
    ]
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::api::routes::ListenerKind;

    /// Where a request is done.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Done {
        /// Where it comes in.
        Here,
        /// On the leader.
        Leader,
        /// On the member that `?target=` names.
        Target,
    }

    /// Path, method, listeners (u: socket, t: cluster address, p: pre-init address), access, phase,
    /// where it is done. A change here changes who may do what: it is to be seen in a review.
    const EXPECTED: &[(&str, &str, &str, Access, Phase, Done)] = &[
        ("/", "GET", "utp", Access::Open, Phase::Always, Done::Here),
        ("/core/1.0", "GET", "utp", Access::Open, Phase::Always, Done::Here),
        ("/core/1.0/openapi.json", "GET", "utp", Access::Open, Phase::Always, Done::Here),
        ("/core/1.0/ready", "GET", "utp", Access::Member, Phase::Always, Done::Here),
        ("/core/1.0/daemon/config", "GET", "ut", Access::Member, Phase::Member, Done::Target),
        ("/core/1.0/daemon/config", "PUT", "ut", Access::Member, Phase::Member, Done::Target),
        ("/core/1.0/daemon/config", "PATCH", "ut", Access::Member, Phase::Member, Done::Target),
        ("/core/1.0/daemon/servers", "GET", "ut", Access::Member, Phase::Member, Done::Target),
        ("/core/1.0/daemon/servers", "PUT", "ut", Access::Member, Phase::Member, Done::Target),
        ("/core/1.0/daemon/status", "GET", "ut", Access::Member, Phase::Member, Done::Target),
        ("/core/1.0/cluster", "GET", "ut", Access::Joiner, Phase::Member, Done::Here),
        ("/core/1.0/cluster/{name}", "GET", "ut", Access::Member, Phase::Member, Done::Here),
        ("/core/1.0/cluster/{name}", "DELETE", "ut", Access::Member, Phase::Member, Done::Leader),
        ("/core/1.0/cluster/certificates/{name}", "PUT", "ut", Access::Member, Phase::Always, Done::Here),
        ("/core/1.0/database/verify", "POST", "ut", Access::Member, Phase::Member, Done::Here),
        ("/core/1.0/tokens/{name}", "DELETE", "ut", Access::Member, Phase::Member, Done::Here),
        ("/core/control", "POST", "u", Access::Socket, Phase::Always, Done::Here),
        ("/core/control/shutdown", "POST", "u", Access::Socket, Phase::Always, Done::Here),
        ("/core/control/tokens", "GET", "u", Access::Socket, Phase::Member, Done::Here),
        ("/core/control/tokens", "POST", "u", Access::Socket, Phase::Member, Done::Here),
        ("/core/internal/cluster", "POST", "ut", Access::Token, Phase::Member, Done::Leader),
        ("/core/internal/cluster/{name}/confirm", "POST", "t", Access::Token, Phase::Member, Done::Leader),
        ("/core/internal/cluster/{name}/drop", "POST", "t", Access::Token, Phase::Member, Done::Leader),
        ("/core/internal/cluster/{name}/rebuild", "POST", "t", Access::Member, Phase::Member, Done::Leader),
        ("/core/internal/cluster/{name}", "PUT", "t", Access::Member, Phase::Member, Done::Here),
        ("/core/internal/membership", "GET", "t", Access::Open, Phase::Member, Done::Here),
        ("/core/internal/sql", "GET", "ut", Access::Member, Phase::Current, Done::Here),
        ("/core/internal/sql", "POST", "ut", Access::Member, Phase::Current, Done::Here),
        ("/core/internal/database", "POST", "ut", Access::Joiner, Phase::Joining, Done::Here),
        ("/core/internal/database", "PATCH", "ut", Access::Member, Phase::Member, Done::Here),
        ("/core/internal/certificates", "POST", "ut", Access::Member, Phase::Member, Done::Here),
        ("/core/internal/heartbeat", "POST", "ut", Access::Member, Phase::Member, Done::Here),
        ("/core/internal/hooks/{hook}", "POST", "ut", Access::Member, Phase::Member, Done::Target),
        ("/core/internal/truststore", "POST", "ut", Access::Member, Phase::Member, Done::Here),
        ("/core/internal/truststore/{name}", "DELETE", "ut", Access::Member, Phase::Member, Done::Here),
    ];

    #[test]
    fn the_table_is_the_one_that_was_reviewed() {
        let letter = |kind: &ListenerKind| match kind {
            ListenerKind::Unix => 'u',
            ListenerKind::Tls => 't',
            ListenerKind::PreInit => 'p',
            ListenerKind::Additional => 'a',
        };
        let table = table();
        assert_eq!(table.len(), EXPECTED.len(), "every route has a row in this test");
        for (route, expected) in table.iter().zip(EXPECTED) {
            let listeners: String = route.listeners.iter().map(letter).collect();
            let done = match (route.leader, route.target) {
                (true, false) => Done::Leader,
                (false, true) => Done::Target,
                (false, false) => Done::Here,
                (true, true) => panic!("{} is for the leader and for a target", route.path),
            };
            let method = route.method.as_ref().map_or("any", Method::as_str);
            let row = (&*route.path, method, &*listeners, route.access, route.phase, done);
            assert_eq!(row, *expected);
        }
    }

    #[test]
    fn what_only_the_socket_may_do_is_served_nowhere_else() {
        for route in table() {
            let is_socket = route.path.starts_with("/core/control");
            assert_eq!(route.access == Access::Socket, is_socket, "{}", route.path);
            assert_eq!(*route.listeners == *UNIX, is_socket, "{}", route.path);
        }
    }

    #[test]
    fn a_path_and_method_stand_in_the_table_once() {
        let mut seen = HashSet::new();
        assert!(table().iter().all(|route| seen.insert((route.path.clone(), route.method.clone()))));
    }
}
