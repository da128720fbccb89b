//! Opening connections to addresses that were checked.
//!
//! A name is looked up once a connection and every address is checked; the connection then goes to exactly
//! such an address, so that a second answer of the name service cannot lead elsewhere. HTTP requests and the
//! WebSocket of a stream both dial through here.

#![allow(clippy::disallowed_methods, reason = "shell: opens sockets")]

use std::collections::BTreeMap;
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::Uri;
use hyper_rustls::ConfigBuilderExt as _;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

use super::address::{AddressPolicy, Refusal};

/// Longest time for looking up a name and connecting over TCP.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Addresses of one name that are tried; the rest is left.
const ADDRESSES_MAX: usize = 6;
/// Time for one address while others wait behind it.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(4);

/// Why there is no connection.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    /// Our own rules forbid it.
    #[error("{0}")]
    Refused(#[from] Refusal),
    /// The name cannot be looked up.
    #[error("look up {host}: {reason}")]
    Lookup {
        /// Host and port.
        host: String,
        /// The system's words.
        reason: String,
    },
    /// No address answers.
    #[error("connect to {host}: {reason}")]
    Tcp {
        /// Host and port.
        host: String,
        /// The system's words, for the last address that was tried.
        reason: String,
    },
    /// Neither happened in time.
    #[error("connect to {host}: no answer within {} s", timeout.as_secs())]
    Timeout {
        /// Host and port.
        host: String,
        /// The limit.
        timeout: Duration,
    },
}

/// How names become addresses.
#[derive(Debug, Clone)]
pub enum Lookup {
    /// As the system does it.
    System,
    /// From a table, without regard to ports; for tests and simulated networks.
    Table(Arc<BTreeMap<String, Vec<IpAddr>>>),
}

/// Opens TCP connections. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Connector {
    policy: Arc<AddressPolicy>,
    lookup: Lookup,
    timeout: Duration,
}

impl Connector {
    /// With the system's names and [`CONNECT_TIMEOUT`].
    #[must_use]
    pub fn new(policy: AddressPolicy) -> Self {
        Self::with_lookup(policy, Lookup::System, CONNECT_TIMEOUT)
    }

    /// With other names or another limit.
    #[must_use]
    pub fn with_lookup(policy: AddressPolicy, lookup: Lookup, timeout: Duration) -> Self {
        Self {
            policy: Arc::new(policy),
            lookup,
            timeout,
        }
    }

    /// The rules it goes by.
    #[must_use]
    pub fn policy(&self) -> &AddressPolicy {
        &self.policy
    }

    /// Connects to a host: a name, an IPv4 address, or an IPv6 address in brackets.
    ///
    /// # Errors
    /// When our rules forbid it, or no allowed address answers in time.
    pub async fn connect(&self, host: &str, port: u16, https: bool) -> Result<TcpStream, ConnectError> {
        let authority = authority(host, port, https);
        self.policy.check_host(&authority, https)?;
        let deadline = Instant::now() + self.timeout;
        let late = || ConnectError::Timeout {
            host: authority.clone(),
            timeout: self.timeout,
        };
        let found = timeout_at(deadline, self.look_up(host, port))
            .await
            .map_err(|_| late())?
            .map_err(|reason| ConnectError::Lookup {
                host: authority.clone(),
                reason,
            })?;
        let allowed = self.allowed(&authority, &found)?;
        let mut last = late();
        for (index, address) in allowed.iter().enumerate() {
            let is_last = index + 1 == allowed.len();
            let limit = if is_last {
                deadline
            } else {
                deadline.min(Instant::now() + ATTEMPT_TIMEOUT)
            };
            last = match timeout_at(limit, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => {
                    // Requests and pings are small and wait for answers. A socket that cannot is slower, no more.
                    stream.set_nodelay(true).unwrap_or_default();
                    return Ok(stream);
                }
                Ok(Err(error)) => ConnectError::Tcp {
                    host: authority.clone(),
                    reason: error.to_string(),
                },
                Err(_) => late(),
            };
            if Instant::now() >= deadline {
                break;
            }
        }
        Err(last)
    }

    async fn look_up(&self, host: &str, port: u16) -> Result<Vec<SocketAddr>, String> {
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        if let Ok(address) = bare.parse::<IpAddr>() {
            return Ok(vec![SocketAddr::new(address, port)]);
        }
        match &self.lookup {
            Lookup::System => tokio::net::lookup_host((bare, port))
                .await
                .map(Iterator::collect)
                .map_err(|error| error.to_string()),
            Lookup::Table(table) => table
                .get(bare)
                .map(|addresses| addresses.iter().map(|ip| SocketAddr::new(*ip, port)).collect())
                .ok_or_else(|| "no such name".to_owned()),
        }
    }

    /// The addresses that may be contacted; the first refusal if there is none.
    fn allowed(&self, authority: &str, found: &[SocketAddr]) -> Result<Vec<SocketAddr>, ConnectError> {
        let mut refusal = None;
        let mut allowed = Vec::new();
        for address in found {
            match self.policy.check_address(authority, address.ip()) {
                Ok(()) => allowed.push(*address),
                Err(refused) => refusal = refusal.or(Some(refused)),
            }
        }
        allowed.truncate(ADDRESSES_MAX);
        match (allowed.is_empty(), refusal) {
            (false, _) => Ok(allowed),
            (true, Some(refused)) => Err(refused.into()),
            (true, None) => Err(ConnectError::Lookup {
                host: authority.to_owned(),
                reason: "the name has no address".to_owned(),
            }),
        }
    }
}

/// Host and port as they stand in a [`HostName`](crate::types::HostName): the scheme's own port is left out.
#[must_use]
pub fn authority(host: &str, port: u16, https: bool) -> String {
    if port == default_port(https) {
        host.to_owned()
    } else {
        format!("{host}:{port}")
    }
}

/// The port of https or http.
#[must_use]
pub const fn default_port(https: bool) -> u16 {
    if https { 443 } else { 80 }
}

impl tower::Service<Uri> for Connector {
    type Response = TokioIo<TcpStream>;
    type Error = ConnectError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, ConnectError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connector = self.clone();
        Box::pin(async move {
            let https = uri.scheme_str() == Some("https");
            let host = uri.host().unwrap_or_default();
            let port = uri.port_u16().unwrap_or(default_port(https));
            connector.connect(host, port, https).await.map(TokioIo::new)
        })
    }
}

/// The TLS side of every connection: the system's root certificates, TLS 1.2 and 1.3, aws-lc-rs.
///
/// # Errors
/// When the system has no root certificates; in `dev_mode` that leaves no certificate trusted instead.
pub fn tls_config(dev_mode: bool) -> Result<rustls::ClientConfig, TlsSetupError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("aws-lc-rs supports the default versions");
    match builder.clone().with_native_roots() {
        Ok(builder) => Ok(builder.with_no_client_auth()),
        Err(error) if dev_mode => {
            tracing::warn!(%error, "no root certificates: https will fail, plain http works");
            let roots = rustls::RootCertStore::empty();
            Ok(builder.with_root_certificates(roots).with_no_client_auth())
        }
        Err(error) => Err(TlsSetupError(error.to_string())),
    }
}

/// There are no root certificates.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "no root certificates found ({0}); install the system's CA certificates, or name a file of them in \
     SSL_CERT_FILE"
)]
pub struct TlsSetupError(String);
