//! Where a server listens.

use std::{fmt, io, net::SocketAddr, str::FromStr};

use tokio::net::{TcpListener, lookup_host};
use tower_storage_guard::BoxError;

/// `HOST:PORT`, of which the host may be a name. Port 0 takes a free one.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Address {
    host: String,
    port: u16,
}

impl Address {
    /// Listens there.
    ///
    /// A name that stands for several addresses, as `localhost` does, means one of them: the first of IPv4, if there is any.
    /// Otherwise a second server with the same flags would listen at the address that the first has left over.
    ///
    /// # Errors
    ///
    /// When the name cannot be found, or the port cannot be had.
    pub async fn bind(&self) -> Result<TcpListener, BoxError> {
        let listener = self.try_bind().await;
        listener.map_err(|error| format!("cannot listen on {self}: {error}").into())
    }

    async fn try_bind(&self) -> io::Result<TcpListener> {
        let found = lookup_host((&*self.host, self.port)).await?;
        let first = found.min_by_key(SocketAddr::is_ipv6);
        TcpListener::bind(first.ok_or(io::ErrorKind::NotFound)?).await
    }
}

impl FromStr for Address {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const EXPECTED: &str = "expected HOST:PORT, such as localhost:3000";

        if let Ok(address) = text.parse::<SocketAddr>() {
            return Ok(Self {
                host: address.ip().to_string(),
                port: address.port(),
            });
        }
        let (host, port) = text.rsplit_once(':').ok_or(EXPECTED)?;
        let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
        if host.is_empty() || !host.bytes().all(is_name) {
            return Err(EXPECTED);
        }
        Ok(Self {
            host: host.to_owned(),
            port: port.parse().map_err(|_| EXPECTED)?,
        })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port } = self;
        match host.contains(':') {
            true => write!(f, "[{host}]:{port}"),
            false => write!(f, "{host}:{port}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_names_and_addresses() {
        for text in [
            "localhost:3000",
            "127.0.0.1:0",
            "[::1]:80",
            "my_host-1.example.org:65535",
        ] {
            let address: Address = text.parse().unwrap();
            assert_eq!(address.to_string(), text);
        }
        for text in [
            "",
            "3000",
            ":3000",
            "localhost",
            "localhost:",
            "localhost:65536",
            "localhost:-1",
            "::1:3000",
            "[::1]",
            "http://localhost:3000",
            "local host:3000",
        ] {
            assert!(text.parse::<Address>().is_err(), "{text}");
        }
    }

    #[tokio::test]
    async fn a_name_has_one_address() {
        let address: Address = "localhost:0".parse().unwrap();
        let first = address.bind().await.unwrap();
        let port = first.local_addr().unwrap().port();
        let address: Address = format!("localhost:{port}").parse().unwrap();
        let error = address.bind().await.unwrap_err().to_string();
        let words = format!("cannot listen on localhost:{port}: Address already in use");
        assert!(error.starts_with(&words), "{error}");
    }
}
