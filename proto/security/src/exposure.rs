//! Without TLS, only loopback: a rule about addresses alone.

use std::net::{IpAddr, SocketAddr};

use url::{Host, Url};

use super::{Result, SecurityError};

/// How a port is protected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exposure {
    /// Both sides show certificates.
    Tls,
    /// Nothing protects it: loopback only.
    Loopback,
    /// Nothing protects it, and a user insists (`--insecure`).
    Insecure,
}

impl Exposure {
    /// What certificates and `--insecure` amount to; certificates count where both are given.
    pub fn new(tls: bool, insecure: bool) -> Self {
        match (tls, insecure) {
            (true, _) => Self::Tls,
            (false, false) => Self::Loopback,
            (false, true) => Self::Insecure,
        }
    }
}

/// Whether this address may be bound.
///
/// # Errors
/// When other machines reach it and nothing protects it.
pub fn check_bind(address: SocketAddr, exposure: Exposure) -> Result<()> {
    if exposure == Exposure::Loopback && !is_loopback(address.ip()) {
        Err(SecurityError::OpenPort { address })
    } else {
        Ok(())
    }
}

/// Whether the coordinator at this URL may be dialled.
///
/// # Errors
/// When it is no `http://` or `https://` URL of a host, its scheme does not fit the certificates, or it is on another machine and
/// nothing protects the way.
pub fn check_dial(url: &str, exposure: Exposure) -> Result<Url> {
    let refused = |problem: &str| SecurityError::Url { url: url.to_owned(), problem: problem.to_owned() };
    let parsed = Url::parse(url).map_err(|e| refused(&format!("is no URL: {e}: write http://HOST:PORT")))?;
    let host = parsed.host().ok_or_else(|| refused("names no host: write http://HOST:PORT"))?;
    match (parsed.scheme(), exposure) {
        ("http", Exposure::Tls) => {
            Err(refused("does not use the certificates that are given: write https://"))
        }
        ("https", Exposure::Loopback | Exposure::Insecure) => {
            Err(refused("wants certificates: give --tls-cert, --tls-key and --tls-ca"))
        }
        ("http", Exposure::Loopback) if !stays_here(&host) => {
            Err(SecurityError::OpenDial { url: url.to_owned() })
        }
        ("http" | "https", _) => Ok(parsed),
        _ => Err(refused("is neither http:// nor https://")),
    }
}

/// Whether the host of a request, without its port, is this machine by a name or address that never leaves it.
pub fn is_this_machine(host: &str) -> bool {
    Host::parse(host).is_ok_and(|host| match &host {
        Host::Ipv4(address) => stays_here(&Host::Ipv4(*address)),
        Host::Ipv6(address) => stays_here(&Host::Ipv6(*address)),
        Host::Domain(name) => stays_here(&Host::Domain(name)),
    })
}

/// Whether a name or address never leaves the machine.
fn stays_here(host: &Host<&str>) -> bool {
    match host {
        Host::Ipv4(address) => is_loopback((*address).into()),
        Host::Ipv6(address) => is_loopback((*address).into()),
        // By RFC 6761 these names are loopback everywhere.
        Host::Domain(name) => {
            let name = name.trim_end_matches('.');
            name.eq_ignore_ascii_case("localhost") || name.to_ascii_lowercase().ends_with(".localhost")
        }
    }
}

fn is_loopback(address: IpAddr) -> bool {
    address.to_canonical().is_loopback()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_certificates_only_loopback_is_bound() {
        for address in ["127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "[::ffff:127.0.0.1]:1"] {
            assert!(check_bind(address.parse().unwrap(), Exposure::Loopback).is_ok(), "{address}");
        }
        for address in ["0.0.0.0:1", "[::]:1", "10.0.0.1:1", "[::ffff:10.0.0.1]:1"] {
            let address = address.parse().unwrap();
            let error = check_bind(address, Exposure::Loopback).unwrap_err().to_string();
            assert!(error.starts_with(&format!("{address} is reached from other machines: give --tls-cert")));
            assert!(check_bind(address, Exposure::new(false, true)).is_ok());
            assert!(check_bind(address, Exposure::new(true, false)).is_ok());
        }
    }

    #[test]
    fn without_certificates_only_loopback_is_dialled() {
        let loopback = Exposure::new(false, false);
        for url in ["http://127.0.0.1:1", "http://[::1]:1", "http://localhost:1", "http://a.LOCALHOST.:1"] {
            assert!(check_dial(url, loopback).is_ok(), "{url}");
        }
        for url in
            ["http://10.0.0.1:1", "http://coordinator:1", "http://localhost.example:1", "http://0.0.0.0:1"]
        {
            let error = check_dial(url, loopback).unwrap_err().to_string();
            assert!(error.starts_with(&format!("{url} is another machine: give --tls-cert")), "{error}");
            assert!(check_dial(url, Exposure::Insecure).is_ok(), "{url}");
        }
    }

    #[test]
    fn this_machine_is_known_by_loopback_names_and_addresses_alone() {
        for host in ["127.0.0.1", "127.8.8.8", "[::1]", "localhost", "job.LOCALHOST", "localhost."] {
            assert!(is_this_machine(host), "{host}");
        }
        for host in
            ["evil.example", "10.0.0.1", "localhost.evil.example", "[::2]", "0.0.0.0", "", "127.0.0.1:80"]
        {
            assert!(!is_this_machine(host), "{host}");
        }
    }

    #[test]
    fn a_url_that_does_not_fit_is_refused_in_words() {
        let refused = |url: &str, exposure| check_dial(url, exposure).unwrap_err().to_string();
        assert!(refused("http://localhost:1", Exposure::Tls).ends_with("are given: write https://"));
        for exposure in [Exposure::Loopback, Exposure::Insecure] {
            assert!(refused("https://localhost:1", exposure).contains("wants certificates: give --tls-cert"));
        }
        assert!(check_dial("https://far.example:1", Exposure::Tls).is_ok());
        assert!(refused("localhost:1", Exposure::Loopback).contains("names no host: write http://HOST:PORT"));
        assert!(refused("far", Exposure::Loopback).contains("is no URL"));
        assert!(refused("ftp://localhost", Exposure::Loopback).ends_with("is neither http:// nor https://"));
    }
}
