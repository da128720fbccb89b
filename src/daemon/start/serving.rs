#![allow(
    clippy::disallowed_methods,
    reason = "shell: reads the environment and a file"
)]
//! What serves and what tells people, put together.

use std::path::Path;
use std::sync::Arc;

use super::super::DaemonError;
use super::super::archive_link::ArchiveLink;
use super::super::control::DaemonControl;
use super::super::notify::Notify;
use crate::http::client::Upstream;
use crate::identity::resolver::Resolver;
use crate::metrics::labels::TaskLabel;
use crate::serve::{self, AdminPassword, History, ServeLimits, Service, Trust};

/// XRPC, pages, and the private listener.
pub(super) fn service(
    control: &Arc<DaemonControl>,
    link: &ArchiveLink,
    resolver: &Resolver,
) -> Result<Service, DaemonError> {
    let admin = control.config.admin_password_file.as_deref();
    let admin = admin.map(admin_password).transpose()?;
    Ok(Service {
        trust: Trust {
            identities: Arc::new(resolver.clone()),
            clock: control.clock.clone(),
            admin,
        },
        history: History::new(Arc::clone(&link.bucket), link.temp_dir.clone()),
        sign_ups: control.config.sign_up,
        store: Arc::clone(&control.store),
        blobs: Arc::new(super::super::archive_link::LateBucket(Arc::clone(&link.bucket))),
        metrics: Arc::clone(&control.metrics),
        health: Arc::clone(&link.health),
        control: Arc::clone(control) as Arc<dyn serve::Control>,
        limits: ServeLimits::default(),
        public_url: control.config.public_url.clone(),
        branding: serve::Branding::from_variables(|name| std::env::var(name).ok()),
    })
}

/// Reads the hash of the admin's password.
fn admin_password(path: &Path) -> Result<AdminPassword, DaemonError> {
    let bad = |why: &dyn std::fmt::Display| {
        DaemonError::config(format!(
            "admin_password_file = \"{}\" {why}; make one with `firekeep admin-password --output FILE`",
            path.display()
        ))
    };
    let text = std::fs::read_to_string(path);
    let text = text.map_err(|error| bad(&format!("cannot be read ({error})")))?;
    AdminPassword::parse(&text).map_err(|why| bad(&why))
}

/// Heartbeats and webhooks.
pub(super) fn notify(control: &Arc<DaemonControl>, upstream: Upstream) -> Notify {
    Notify {
        control: Arc::clone(control),
        upstream,
        applier_pulse: control.supervisor.probe(TaskLabel::Apply),
    }
}
