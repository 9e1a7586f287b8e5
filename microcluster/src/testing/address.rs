//! Addresses for daemons of tests. The SDK's own tests have it too, without the test kit.

use std::net::{Ipv4Addr, TcpListener};
use std::sync::atomic::{AtomicU8, Ordering};

use microcluster_client::Address;

/// An address that nobody uses: on an address of loopback that no other test and no outgoing connection has, so that the
/// port stays free until a daemon, or its next run, takes it.
#[must_use]
pub fn address_free() -> Address {
    static NEXT: AtomicU8 = AtomicU8::new(0);
    let process = std::process::id().to_be_bytes();
    let last = 1 + NEXT.fetch_add(1, Ordering::Relaxed) % 250;
    let ip = Ipv4Addr::new(127, 16 + process[2] % 200, process[3], last);
    let reserved = TcpListener::bind((ip, 0)).or_else(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)));
    Address::from(reserved.and_then(|listener| listener.local_addr()).expect("a free port"))
}
