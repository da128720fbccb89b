#![allow(clippy::disallowed_methods, reason = "shell: a server")]
//! The load generator's host on a socket: the sync methods, the stream, and the directory's documents.
//!
//! Its accounts stand still until the load is started: then the frames are made, and after that sent, so that
//! making them takes no time from whoever is measured. Exports are of the newest state, which may be ahead of the
//! stream, as at any host.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{self, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::account::{BlockOrder, LoadAccount};
use super::host::LoadHost;
use crate::stream::encode::encode_frame;
use crate::stream::frame::{ErrorFrame, Frame};
use crate::types::Did;

/// Most entries of a page.
const PAGE_MAX: usize = 1000;
/// Frames sent between two flushes of the socket.
const FLUSH_FRAMES: usize = 64;
/// How often frames are released when they are sent at a set rate.
const TICK: Duration = Duration::from_millis(2);

/// A host that can be served.
pub struct LoadServer {
    host: RwLock<LoadHost>,
    seed: u64,
    order: BlockOrder,
    /// Frames up to this number are out.
    sent: watch::Sender<u64>,
}

type Answer = Response<Full<Bytes>>;

impl LoadServer {
    /// Of this host, whose exports have their blocks in this order.
    #[must_use]
    pub fn new(host: LoadHost, seed: u64, order: BlockOrder) -> Arc<Self> {
        Arc::new(Self {
            host: RwLock::new(host),
            seed,
            order,
            sent: watch::channel(0).0,
        })
    }

    /// Makes so many more frames.
    pub async fn make(self: &Arc<Self>, events: u64) {
        let this = Arc::clone(self);
        let made = tokio::task::spawn_blocking(move || {
            let mut host = this.host.write().expect("nobody panics with it");
            let seed = this.seed ^ host.frames.len() as u64;
            host.write(seed, events);
        });
        made.await.expect("it does not panic");
    }

    /// Sends what is made: so many frames a second, or all at once.
    pub async fn send(&self, rate: Option<u64>) {
        let made = self.host.read().expect("nobody panics with it").frames.len() as u64;
        let (began, first) = (Instant::now(), *self.sent.borrow());
        let Some(rate) = rate else {
            self.sent.send_replace(made);
            return;
        };
        let mut tick = began;
        while *self.sent.borrow() < made {
            tick += TICK;
            sleep_until(tick).await;
            let due = began.elapsed().as_micros() as u64 * rate / 1_000_000;
            self.sent.send_replace((first + due).min(made));
        }
    }

    /// Serves connections for ever.
    ///
    /// # Errors
    /// When the listener fails.
    pub async fn serve(self: Arc<Self>, listener: TcpListener) -> std::io::Result<Infallible> {
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            let this = Arc::clone(&self);
            tokio::spawn(async move {
                let service = service_fn(|request| {
                    let this = Arc::clone(&this);
                    async move { Ok::<_, Infallible>(this.answer(request).await) }
                });
                let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
                // A caller that hangs up is no failure here.
                connection.with_upgrades().await.ok();
            });
        }
    }

    async fn answer(self: Arc<Self>, request: Request<Incoming>) -> Answer {
        let uri = request.uri().clone();
        let asked = Asked(uri.query().unwrap_or("").to_owned());
        if uri.path() == "/xrpc/com.atproto.sync.subscribeRepos" {
            return self.subscribe(request, &asked);
        }
        if (request.method(), uri.path()) == (&Method::POST, "/load/make") {
            let Some(events) = asked.number("events") else {
                return error(StatusCode::BAD_REQUEST, "InvalidRequest");
            };
            self.make(events).await;
            return json(&self.told());
        }
        if (request.method(), uri.path()) == (&Method::POST, "/load/send") {
            let (this, rate) = (Arc::clone(&self), asked.number("rate"));
            tokio::spawn(async move { this.send(rate).await });
            return json(&self.told());
        }
        // Exports are large: they are made where they hold up nobody.
        let path = uri.path().to_owned();
        let answer = tokio::task::spawn_blocking(move || self.read(&path, &asked));
        answer.await.expect("it does not panic")
    }

    /// What is there, and how far it is sent.
    #[must_use]
    pub fn told(&self) -> Value {
        let host = self.host.read().expect("nobody panics with it");
        json!({
            "accounts": host.accounts.len(),
            "records": host.accounts.iter().map(|account| account.records()).sum::<u64>(),
            "made": host.frames.len(),
            "bytes": host.frames.iter().map(|frame| frame.len() as u64).sum::<u64>(),
            "sent": *self.sent.borrow(),
        })
    }

    fn read(&self, path: &str, asked: &Asked) -> Answer {
        let host = self.host.read().expect("nobody panics with it");
        let number = |did: &str| {
            let did: Did = did.parse().ok()?;
            host.numbers.get(&did).copied()
        };
        let method = match path.strip_prefix("/xrpc/") {
            Some(method) => method,
            None if path == "/load" => {
                drop(host);
                return json(&self.told());
            }
            None => {
                let (did, log) = match path[1..].strip_suffix("/log/audit") {
                    Some(did) => (did, true),
                    None => (&path[1..], false),
                };
                return match number(did) {
                    Some(number) if log => json(&host.logs[number]),
                    Some(number) => json(&host.document(number)),
                    None => error(StatusCode::NOT_FOUND, "NotFound"),
                };
            }
        };
        match method {
            "_health" => return json(&json!({"version": "loadgen"})),
            "com.atproto.server.describeServer" => {
                return json(&json!({"did": "did:web:load.test", "availableUserDomains": []}));
            }
            "com.atproto.sync.listRepos" => return json(&list_repos(&host, asked)),
            _ => {}
        }
        let Some(account) = asked
            .text("did")
            .and_then(|did| number(&did))
            .map(|at| &host.accounts[at])
        else {
            return error(StatusCode::BAD_REQUEST, "RepoNotFound");
        };
        let (rev, head, _) = account.head();
        match method {
            "com.atproto.sync.getRepo" => with_type("application/vnd.ipld.car", account.export(self.order)),
            "com.atproto.sync.getLatestCommit" => {
                json(&json!({"cid": head.to_string(), "rev": rev.to_string()}))
            }
            "com.atproto.sync.getRepoStatus" => {
                json(&json!({"did": account.did().as_str(), "active": true, "rev": rev.to_string()}))
            }
            "com.atproto.sync.listBlobs" => {
                let cids: Vec<_> = account.picture_cid().iter().map(ToString::to_string).collect();
                json(&json!({"cids": cids}))
            }
            "com.atproto.sync.getBlob" => match account.picture() {
                Some((cid, bytes)) if asked.text("cid").as_deref() == Some(&cid.to_string()) => {
                    with_type("image/jpeg", bytes)
                }
                _ => error(StatusCode::BAD_REQUEST, "BlobNotFound"),
            },
            _ => error(StatusCode::NOT_IMPLEMENTED, "MethodNotImplemented"),
        }
    }

    fn subscribe(self: Arc<Self>, mut request: Request<Incoming>, asked: &Asked) -> Answer {
        let Some(key) = request.headers().get(header::SEC_WEBSOCKET_KEY).cloned() else {
            return error(StatusCode::UPGRADE_REQUIRED, "UpgradeRequired");
        };
        let cursor = asked.number("cursor");
        tokio::spawn(async move {
            let Ok(upgraded) = hyper::upgrade::on(&mut request).await else {
                return;
            };
            let socket = WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, None).await;
            // A consumer that hangs up is no failure here.
            self.stream(socket, cursor).await.ok();
        });
        let mut response = Response::new(Full::default());
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = response.headers_mut();
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        let accept = HeaderValue::from_str(&derive_accept_key(key.as_bytes())).expect("base64");
        headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
        response
    }

    async fn stream(
        &self,
        socket: WebSocketStream<TokioIo<hyper::upgrade::Upgraded>>,
        cursor: Option<u64>,
    ) -> Result<(), tokio_tungstenite::tungstenite::Error> {
        let (mut out, mut heard) = socket.split();
        let mut sent = self.sent.subscribe();
        let mut next = cursor.unwrap_or_else(|| *sent.borrow());
        if next > *sent.borrow() {
            let error = ErrorFrame {
                error: "FutureCursor",
                message: None,
            };
            out.send(Message::Binary(encode_frame(&Frame::Error(error)).into()))
                .await?;
            return out.close().await;
        }
        loop {
            while next < *sent.borrow_and_update() {
                let until = (next + FLUSH_FRAMES as u64).min(*sent.borrow());
                let frames = {
                    let host = self.host.read().expect("nobody panics with it");
                    host.frames[next as usize..until as usize].to_vec()
                };
                for frame in frames {
                    out.feed(Message::Binary(frame)).await?;
                }
                out.flush().await?;
                next = until;
            }
            tokio::select! {
                biased;
                message = heard.next() => match message {
                    // Pongs go out with the next flush.
                    Some(Ok(_)) => out.flush().await?,
                    _ => return Ok(()),
                },
                more = sent.changed() => if more.is_err() { return Ok(()) },
            }
        }
    }
}

fn list_repos(host: &LoadHost, asked: &Asked) -> Value {
    let from = usize::try_from(asked.number("cursor").unwrap_or(0)).unwrap_or(usize::MAX);
    let limit = asked
        .number("limit")
        .map_or(500, |limit| limit as usize)
        .clamp(1, PAGE_MAX);
    let repo = |account: &LoadAccount| {
        let (rev, head, _) = account.head();
        json!({"did": account.did().as_str(), "head": head.to_string(), "rev": rev.to_string(), "active": true})
    };
    let repos: Vec<_> = host.accounts.iter().skip(from).take(limit).map(repo).collect();
    let to = from + repos.len();
    if to < host.accounts.len() {
        json!({"repos": repos, "cursor": to.to_string()})
    } else {
        json!({"repos": repos})
    }
}

/// A query.
struct Asked(String);

impl Asked {
    fn text(&self, name: &str) -> Option<String> {
        let value = self
            .0
            .split('&')
            .find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))?;
        let text = percent_encoding::percent_decode_str(value).decode_utf8().ok()?;
        Some(text.into_owned())
    }

    fn number(&self, name: &str) -> Option<u64> {
        self.text(name)?.parse().ok()
    }
}

fn json(value: &Value) -> Answer {
    with_type("application/json", value.to_string().into_bytes())
}

fn with_type(kind: &'static str, body: Vec<u8>) -> Answer {
    let mut response = Response::new(Full::new(body.into()));
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

fn error(status: StatusCode, name: &str) -> Answer {
    let mut response = json(&json!({"error": name, "message": name}));
    *response.status_mut() = status;
    response
}

/// Where it listens, as hosts are named.
#[must_use]
pub fn url(address: SocketAddr) -> String {
    format!("http://{address}")
}
