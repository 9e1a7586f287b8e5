//! An IP address with a port.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use crate::names::serde_as_text;

/// An IP address with a port, `10.0.0.1:9000` or `[fd00::1]:9000`. Host names are refused: an
/// address is an identity in the cluster and must not change its meaning.
///
/// ```
/// use microcluster_client::Address;
///
/// let address: Address = "[::1]:9000".parse()?;
/// assert_eq!(address.port(), 9000);
/// assert!("10.0.0.1:0".parse::<Address>()?.cluster().is_err());
/// # Ok::<(), microcluster_client::AddressError>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address(SocketAddr);

/// Why a text is not an [`Address`], or not one that a member can have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AddressError {
    /// The text is empty.
    #[error("the address is empty; give IP:PORT, for example 10.0.0.1:9000 or [fd00::1]:9000")]
    Empty,
    /// There is no port behind the IP address.
    #[error("address {address:?} has no port; give IP:PORT, for example 10.0.0.1:9000")]
    PortMissing {
        /// The text.
        address: String,
    },
    /// The port is no number from 0 to 65535.
    #[error("address {address:?} has the port {port:?}; a port is a number up to 65535")]
    Port {
        /// The text.
        address: String,
        /// What stands where the port should.
        port: String,
    },
    /// An IPv6 address must be in brackets.
    #[error("address {address:?} is IPv6 without brackets; write [IP]:PORT, for example [fd00::1]:9000")]
    Brackets {
        /// The text.
        address: String,
    },
    /// The part before the port is no IP address.
    #[error("address {address:?} has no valid IP address before the port; host names are not accepted, give IP:PORT")]
    Ip {
        /// The text.
        address: String,
    },
    /// Port 0 where other members must be able to connect.
    #[error("address {address} has port 0; a cluster address needs a fixed port, for example 9000")]
    PortZero {
        /// The address.
        address: Address,
    },
    /// `0.0.0.0` or `::` where other members must be able to connect.
    #[error("address {address} is no address that other members can connect to; give one of this machine's own")]
    Unspecified {
        /// The address.
        address: Address,
    },
}

impl Address {
    /// This address, if a member can have it as its cluster address: others connect to it, so the
    /// port is fixed and the IP address is a real one.
    ///
    /// # Errors
    /// [`AddressError::PortZero`] and [`AddressError::Unspecified`].
    pub fn cluster(self) -> Result<Address, AddressError> {
        if self.port() == 0 {
            return Err(AddressError::PortZero { address: self });
        }
        if self.ip().is_unspecified() {
            return Err(AddressError::Unspecified { address: self });
        }
        Ok(self)
    }

    /// Whether two listeners cannot have these addresses at the same time: they are the same, or one is every address of the machine.
    ///
    /// ```
    /// use microcluster_client::Address;
    ///
    /// let every: Address = "0.0.0.0:9000".parse()?;
    /// assert!(every.overlaps("10.0.0.1:9000".parse()?));
    /// assert!(!every.overlaps("10.0.0.1:9001".parse()?));
    /// # Ok::<(), microcluster_client::AddressError>(())
    /// ```
    #[must_use]
    pub fn overlaps(self, other: Address) -> bool {
        // `::` is every IPv4 address too, as the system has it unless it is told otherwise.
        let covers = |one: IpAddr, other: IpAddr| one.is_unspecified() && (one.is_ipv6() || other.is_ipv4());
        let (one, two) = (self.ip(), other.ip());
        self.port() == other.port() && (one == two || covers(one, two) || covers(two, one))
    }

    /// The IP address.
    #[must_use]
    pub fn ip(self) -> IpAddr {
        self.0.ip()
    }

    /// The port.
    #[must_use]
    pub fn port(self) -> u16 {
        self.0.port()
    }

    /// The address as the standard library has it, to bind or connect to.
    #[must_use]
    pub fn socket_addr(self) -> SocketAddr {
        self.0
    }
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        text.parse().map(Address).map_err(|_| explain(text))
    }
}

serde_as_text!(Address);

impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Self {
        Address(address)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// What is wrong with a text that the standard library refused as an address.
fn explain(text: &str) -> AddressError {
    let address = text.to_owned();
    if text.is_empty() {
        return AddressError::Empty;
    }
    let unbracketed = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')).unwrap_or(text);
    if unbracketed.parse::<IpAddr>().is_ok() && (text.starts_with('[') || !text.contains(':')) {
        return AddressError::PortMissing { address };
    }
    let Some((ip, port)) = text.rsplit_once(':') else {
        return AddressError::PortMissing { address };
    };
    if !text.starts_with('[') && ip.contains(':') {
        let bare_ipv6 = ip.parse::<Ipv6Addr>().is_ok() || text.parse::<Ipv6Addr>().is_ok();
        return if bare_ipv6 { AddressError::Brackets { address } } else { AddressError::Ip { address } };
    }
    if port.is_empty() {
        return AddressError::PortMissing { address };
    }
    if port.parse::<u16>().is_err() {
        return AddressError::Port { address, port: port.to_owned() };
    }
    AddressError::Ip { address }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn addresses_round_trip() {
        for text in ["127.0.0.1:9001", "[::1]:9000", "[fd00::12]:1", "0.0.0.0:0"] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
        assert_eq!(serde_json::to_string(&"[::1]:1".parse::<Address>().unwrap()).unwrap(), "\"[::1]:1\"");
    }

    #[test]
    fn refusals_name_the_mistake() {
        let refused = |text: &str| text.parse::<Address>().unwrap_err();
        assert_eq!(refused(""), AddressError::Empty);
        for text in ["10.0.0.1", "nope", "10.0.0.1:", "[::1]"] {
            assert!(matches!(refused(text), AddressError::PortMissing { .. }), "{text}");
        }
        for text in ["10.0.0.1:99999", "10.0.0.1:http", "10.0.0.1:-1", "[::1]:x"] {
            assert!(matches!(refused(text), AddressError::Port { .. }), "{text}");
        }
        for text in ["::1:9000", "fd00::1"] {
            assert!(matches!(refused(text), AddressError::Brackets { .. }), "{text}");
        }
        for text in ["localhost:9000", "300.0.0.1:9000", ":9000", "[nope]:1", "a:b:c"] {
            assert!(matches!(refused(text), AddressError::Ip { .. }), "{text}");
        }
    }

    #[test]
    fn a_cluster_address_can_be_connected_to() {
        let cluster = |text: &str| text.parse::<Address>().unwrap().cluster();
        assert!(cluster("127.0.0.1:9000").is_ok());
        assert!(matches!(cluster("127.0.0.1:0"), Err(AddressError::PortZero { .. })));
        assert!(matches!(cluster("0.0.0.0:9000"), Err(AddressError::Unspecified { .. })));
        assert!(matches!(cluster("[::]:9000"), Err(AddressError::Unspecified { .. })));
    }
}
