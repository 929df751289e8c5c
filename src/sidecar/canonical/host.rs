//! The one authority of a request, and whether it is the backend's.

use std::net::SocketAddr;

use http::{Uri, Version};

use super::{Malformed, Once};

/// The names a backend is known under on one listener.
#[derive(Debug, Clone)]
pub struct Hosts {
    names: Vec<Name>,
    /// The same as most callers write them.
    spelled: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Name {
    host: String,
    /// Which port the request must name; any of these, or none.
    ports: Vec<u16>,
    portless: bool,
}

impl Name {
    /// What a caller may write for it, in lower case.
    fn spelled(&self) -> impl Iterator<Item = String> {
        let with_port = self.ports.iter().map(|port| format!("{}:{port}", self.host));
        with_port.chain(self.portless.then(|| self.host.clone()))
    }
}

impl Hosts {
    /// The configured names, and the listener's own address and `localhost` where it listens on a loopback address or a
    /// Unix socket. A name without a port goes with the listener's port or none.
    ///
    /// # Errors
    /// What is wrong with a configured name.
    pub fn new(configured: &[String], listener: Option<SocketAddr>) -> Result<Self, String> {
        let mut names = Vec::new();
        let port = listener.map(|address| address.port());
        for text in configured {
            let (host, given) =
                split(text).ok_or_else(|| format!("host `{}`: write `name` or `name:port`", text.escape_debug()))?;
            let ports = given.map_or_else(|| port.into_iter().collect(), |port| vec![port]);
            names.push(Name { host: host.to_ascii_lowercase(), ports, portless: given.is_none() });
        }
        match listener {
            None => names.push(Name { host: "localhost".to_owned(), ports: Vec::new(), portless: true }),
            Some(address) => {
                let ip = address.ip();
                let host = if ip.is_ipv6() { format!("[{ip}]") } else { ip.to_string() };
                let portless = matches!(address.port(), 80 | 443);
                names.push(Name { host, ports: vec![address.port()], portless });
                if ip.is_loopback() || ip.is_unspecified() {
                    for host in ["localhost", "127.0.0.1", "[::1]"] {
                        names.push(Name { host: host.to_owned(), ports: vec![address.port()], portless });
                    }
                }
            }
        }
        let spelled = names.iter().flat_map(Name::spelled).collect();
        Ok(Self { names, spelled })
    }

    /// One of them.
    pub(super) fn first(&self) -> String {
        self.names.first().map_or_else(String::new, |name| match name.ports.first() {
            Some(port) if !name.portless => format!("{}:{port}", name.host),
            _ => name.host.clone(),
        })
    }

    /// Whether an authority is one of these to the letter. What is not may still be, in another spelling.
    fn has_spelled(&self, authority: &str) -> bool {
        self.spelled.iter().any(|name| name == authority)
    }

    /// Whether an authority is one of these.
    pub fn has(&self, authority: &str) -> bool {
        let Some((host, port)) = split(authority) else { return false };
        self.names.iter().any(|name| {
            name.host.eq_ignore_ascii_case(host) && port.map_or(name.portless, |port| name.ports.contains(&port))
        })
    }
}

/// Host and port of a well-formed authority: no user, no list, one port in range.
fn split(authority: &str) -> Option<(&str, Option<u16>)> {
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => {
            if port.is_empty() || port.len() > 5 || !port.bytes().all(|b| b.is_ascii_digit()) {
                return None;
            }
            (host, Some(port.parse::<u16>().ok()?))
        }
        _ => (authority, None),
    };
    let good = match host.strip_prefix('[') {
        Some(rest) => rest.strip_suffix(']').is_some_and(|ip| ip.parse::<std::net::Ipv6Addr>().is_ok()),
        None => {
            !host.is_empty()
                && host.len() <= 253
                && !host.ends_with('.')
                && host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
        }
    };
    good.then_some((host, port))
}

/// Host and target, or `:authority` and `Host`, name one and the same authority, and it is one of `hosts`.
pub(super) fn check(uri: &Uri, field: Once<'_>, version: Version, hosts: &Hosts) -> Result<(), Malformed> {
    if field.again {
        return Err(Malformed::Host);
    }
    let field = field.value.map(|value| value.to_str()).transpose().map_err(|_| Malformed::Host)?;
    let target = uri.authority().map(|authority| authority.as_str());
    if version == Version::HTTP_2 && uri.scheme().is_some_and(|s| !matches!(s.as_str(), "http" | "https")) {
        return Err(Malformed::TargetForm);
    }
    let authority = match (target, field) {
        (Some(target), Some(field)) if target.eq_ignore_ascii_case(field) => target,
        (Some(_), Some(_)) => return Err(Malformed::Host),
        // An HTTP/1.1 request names its host in a field whatever its target says (RFC 9112 section 3.2).
        (Some(target), None) if version == Version::HTTP_2 => target,
        (None, Some(field)) => field,
        (Some(_) | None, None) => return Err(Malformed::Host),
    };
    if hosts.has_spelled(authority) {
        return Ok(());
    }
    if split(authority).is_none() {
        return Err(Malformed::Host);
    }
    if hosts.has(authority) { Ok(()) } else { Err(Malformed::Misdirected) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_known_to_the_letter_is_well_formed_and_known() {
        let configured = ["Shop.Test".to_owned(), "b.test:8443".to_owned(), "[2001:db8::1]".to_owned()];
        for listener in [None, Some("127.0.0.1:8080"), Some("[::]:443"), Some("192.0.2.7:80")] {
            let listener = listener.map(|text| text.parse().unwrap());
            let hosts = Hosts::new(&configured, listener).unwrap();
            assert!(hosts.has_spelled("shop.test") && hosts.has("SHOP.test") && !hosts.has_spelled("SHOP.test"));
            assert!(hosts.has_spelled("b.test:8443") && !hosts.has_spelled("b.test"));
            for name in &hosts.spelled {
                assert!(split(name).is_some() && hosts.has(name), "{name}");
            }
        }
    }
}
