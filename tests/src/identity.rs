//! Certificates that nobody trusts.

use microcluster_client::Identity;

/// The certificate of somebody who is no member, for a name that a member may have.
#[must_use]
pub fn stranger(name: &str) -> Identity {
    let made = rcgen::generate_simple_self_signed([name.to_owned()]).expect("a certificate");
    Identity::new(made.cert.pem(), made.signing_key.serialize_pem())
}
