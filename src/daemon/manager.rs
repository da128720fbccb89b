#![allow(
    clippy::disallowed_methods,
    reason = "shell: the service manager's socket, and waiting"
)]
//! What the service manager is told (systemd's `sd_notify` protocol): that the daemon is ready, that it stops, and,
//! where a watchdog is set, that it lives. Without a service manager nothing happens.

use std::time::Duration;

use sd_notify::NotifyState;
use tokio_util::sync::CancellationToken;

/// It serves.
pub fn ready() {
    aside(NotifyState::Ready);
}

/// It was told to end.
pub fn stopping() {
    aside(NotifyState::Stopping);
}

/// A service manager that does not read must not hold up anything here.
fn aside(state: NotifyState<'static>) {
    let told = std::thread::Builder::new()
        .name("service-manager".to_owned())
        .spawn(move || tell(&state));
    if let Err(error) = told {
        tracing::warn!(%error, "the service manager cannot be told anything");
    }
}

/// Tells the watchdog that the daemon lives, twice in each of its times, for as long as `alive` says so.
pub async fn watch(alive: impl Fn() -> bool, cancel: CancellationToken) {
    let Some(within) = sd_notify::watchdog_enabled() else {
        return;
    };
    let pause = (within / 2).max(Duration::from_millis(100));
    loop {
        if alive() {
            let told = tokio::task::spawn_blocking(|| tell(&NotifyState::Watchdog));
            tokio::select! {
                biased;
                () = cancel.cancelled() => return,
                // It tells by itself what goes wrong.
                _ = told => {}
            }
        }
        tokio::select! {
            biased;
            () = cancel.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

fn tell(state: &NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(std::slice::from_ref(state)) {
        tracing::warn!(%error, "the service manager cannot be told anything");
    }
}
