#![allow(clippy::disallowed_methods, reason = "shell: sockets")]
//! The two listeners as one task.

use std::sync::Arc;

use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::about;
use super::admin::{Admin, Control};
use super::blob::BlobArchive;
use super::health::Health;
use super::limits::ServeLimits;
use super::listener;
use super::own::{History, SignUps};
use super::page::Branding;
use super::who::{Gate, Trust};
use super::xrpc::Xrpc;
use crate::metrics::Metrics;
use crate::mirror::Store;

/// What serving needs.
pub struct Service {
    /// The mirror.
    pub store: Arc<dyn Store>,
    /// Blobs whose bytes are no longer in the mirror.
    pub blobs: Arc<dyn BlobArchive>,
    /// Where requests are counted, and what `/metrics` shows.
    pub metrics: Arc<Metrics>,
    /// What `/readyz` and `_health` say.
    pub health: Arc<Health>,
    /// What the private listener's commands do.
    pub control: Arc<dyn Control>,
    /// Every limit.
    pub limits: ServeLimits,
    /// How the public reaches it, if it does.
    pub public_url: Option<String>,
    /// What callers are believed by.
    pub trust: Trust,
    /// The archive, for whoever may ask for what was.
    pub history: History,
    /// Whose accounts may be signed up.
    pub sign_ups: SignUps,
    /// The PDS's own looks.
    pub branding: Branding,
}

impl Service {
    /// Serves XRPC on one socket, metrics and health on the other (see [`listener::bind`]), until `shutdown`;
    /// then ends within [`ServeLimits::drain_timeout`]. The private listener goes on while the public one
    /// drains.
    pub async fn run(self, xrpc: TcpListener, admin: TcpListener, shutdown: CancellationToken) {
        let limits = Arc::new(self.limits);
        let admin_shutdown = CancellationToken::new();
        let admin_answers = Arc::new(Admin {
            metrics: Arc::clone(&self.metrics),
            health: Arc::clone(&self.health),
            control: Arc::clone(&self.control),
        });
        let port = xrpc.local_addr().map_or(0, |address| address.port());
        let base_url = self.public_url.clone();
        let base_url = base_url.unwrap_or_else(|| format!("http://localhost:{port}"));
        let xrpc_answers = Arc::new(Xrpc {
            store: self.store,
            blobs: self.blobs,
            metrics: Arc::clone(&self.metrics),
            health: self.health,
            lookups: Arc::new(Semaphore::new(limits.lookups_max)),
            exports: Arc::new(Semaphore::new(limits.exports_max)),
            blob_streams: Arc::new(Semaphore::new(limits.blob_streams_max)),
            limits: Arc::clone(&limits),
            did: about::service_did(&base_url),
            public_url: self.public_url,
            directory: Arc::default(),
            control: self.control,
            gate: Gate::new(self.trust),
            history: self.history,
            sign_ups: self.sign_ups,
            branding: self.branding,
            base_url,
        });
        let public = async {
            let metrics = Arc::clone(&self.metrics);
            listener::listen(xrpc, xrpc_answers, Arc::clone(&limits), metrics, shutdown).await;
            admin_shutdown.cancel();
        };
        let private = listener::listen(
            admin,
            admin_answers,
            Arc::clone(&limits),
            Arc::clone(&self.metrics),
            admin_shutdown.clone(),
        );
        tokio::join!(public, private);
    }
}
