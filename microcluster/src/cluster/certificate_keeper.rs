//! Keeps the certificates in place that the table holds, and warns before one expires.

use std::sync::Arc;
use std::time::Duration;

use microcluster_client::{CertificateExpiry, Timestamp};

use super::node::Node;
use crate::error::Chain;
use crate::tasks::Tasks;
use crate::tls::CertificateCell;

/// Pause after a change: the table of a busy database is not read for every write.
const PAUSE: Duration = Duration::from_millis(100);
/// Pause before what failed is tried again.
const RETRY_PAUSE: Duration = Duration::from_secs(5);
/// How often the dates are looked at.
const DATES_INTERVAL: Duration = Duration::from_secs(12 * 3600);
/// How long before a certificate expires that is worth a warning.
const EXPIRY_WARNING: Duration = Duration::from_secs(30 * SECONDS_PER_DAY);
const SECONDS_PER_DAY: u64 = 86_400;

/// What somebody has to do about a certificate.
#[derive(Debug, PartialEq, Eq)]
enum Expiry {
    Soon { days: u64 },
    Over,
}

/// Follows the table until the tasks are stopped. `server` is this member's own certificate.
pub(crate) async fn keep_certificates(node: Arc<Node>, server: CertificateCell, tasks: Tasks) {
    tokio::select! {
        () = tasks.stopping() => {}
        () = follow(&node, &server) => {}
    }
}

async fn follow(node: &Node, server: &CertificateCell) {
    let mut changes = node.db.changes();
    let mut dates = tokio::time::interval(DATES_INTERVAL);
    loop {
        let installed = node.install_certificates().await;
        if let Err(e) = &installed {
            tracing::error!(error = %Chain(e), "a certificate of the cluster is not in place here");
        }
        // At once after a quiet while, and not more often than this while the database is busy.
        tokio::time::sleep(PAUSE).await;
        tokio::select! {
            () = tokio::time::sleep(RETRY_PAUSE), if installed.is_err() => {}
            changed = changes.changed() => if changed.is_err() { return },
            () = node.certificate_changed.notified() => dates.reset_immediately(),
            _ = dates.tick() => {
                let own = CertificateExpiry { name: "server".into(), expires_at: server.current().certificate.expires_at };
                let others = node.expiry().await;
                others.iter().chain([&own]).for_each(|certificate| warn(certificate, Timestamp::now()));
            }
        }
    }
}

/// Says in the log what somebody has to do.
fn warn(certificate: &CertificateExpiry, now: Timestamp) {
    let CertificateExpiry { name, expires_at } = certificate;
    let remedy = match name.as_str() {
        "server" => {
            "the members go on to know each other by it; to have another one remove this member and join it again"
        }
        _ => "replace it with `microctl certificates set`",
    };
    match expiry(*expires_at, now) {
        Some(Expiry::Over) => tracing::error!(name, %expires_at, "a certificate has expired; {remedy}"),
        Some(Expiry::Soon { days }) => tracing::warn!(name, %expires_at, days, "a certificate expires soon; {remedy}"),
        None => {}
    }
}

fn expiry(expires_at: Timestamp, now: Timestamp) -> Option<Expiry> {
    match expires_at.since(now) {
        None => Some(Expiry::Over),
        Some(left) if left < EXPIRY_WARNING => Some(Expiry::Soon { days: left.as_secs() / SECONDS_PER_DAY }),
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_expires_within_a_month_is_worth_a_warning() {
        let now = Timestamp::from_unix_seconds(1_900_000_000).unwrap_or_default();
        let after = |days: u64| now.checked_add(Duration::from_secs(days * SECONDS_PER_DAY)).unwrap_or_default();
        assert_eq!(expiry(after(31), now), None);
        assert_eq!(expiry(after(29), now), Some(Expiry::Soon { days: 29 }));
        assert_eq!(expiry(after(0), after(1)), Some(Expiry::Over));
    }
}
