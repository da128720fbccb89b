#![allow(clippy::disallowed_methods, reason = "shell: the network and the clock")]
//! Listing a host's accounts: page by page, each durable before the next, taken up again where it stopped.

use std::time::Duration;

use serde::Deserialize;

use super::blobs::query_value;
use super::handle::{ApplierHandle, Stopped};
use super::input::{Input, ListedPage, ListedRepo};
use super::keyspace::Task;
use super::rows::Listing;
use crate::clock::Clock;
use crate::http::client::Upstream;
use crate::http::request::{FetchError, Limits};
use crate::types::{AccountStatus, HostName};

/// Accounts on a page of `listRepos`.
const LIST_LIMIT: usize = 1000;
/// Some hosts take more than 20 s a page.
const PAGE_TIMEOUT: Duration = Duration::from_secs(120);
/// Wait after a page that did not come.
const RETRY: Duration = Duration::from_secs(15);

/// A page, field by field: one odd entry must not hide the others, so nothing is stricter than it needs to be.
#[derive(Deserialize)]
struct RepoPage {
    cursor: Option<String>,
    repos: Vec<RepoEntry>,
}

#[derive(Deserialize)]
struct RepoEntry {
    did: String,
    head: Option<String>,
    active: Option<bool>,
    status: Option<String>,
}

/// How a listing ended.
pub enum Listed {
    /// Every page is durable.
    Finished,
    /// The host did not answer as it should; the listing goes on at the page that failed.
    Failed(FetchError),
}

/// Pages `listRepos` from where the host's row says, until the end.
///
/// # Errors
/// When the applier is gone.
pub async fn list_host(
    upstream: &Upstream,
    clock: &Clock,
    applier: &ApplierHandle,
    host: &HostName,
    url: &str,
    from: Option<String>,
    task: Vec<u8>,
) -> Result<Listed, Stopped> {
    let mut cursor = from;
    loop {
        let mut page_url = format!("{url}/xrpc/com.atproto.sync.listRepos?limit={LIST_LIMIT}");
        if let Some(cursor) = &cursor {
            page_url.push_str("&cursor=");
            page_url.extend(query_value(cursor));
        }
        let limits = Limits {
            total: PAGE_TIMEOUT,
            first_byte: PAGE_TIMEOUT,
            ..Limits::json(4 << 20)
        };
        let asked_at = clock.now();
        let page: RepoPage = match upstream.get_json_within(&page_url, &limits).await {
            Ok(page) => page,
            Err(error) => {
                let retry_at = clock.now().plus(error.wait().unwrap_or(RETRY).max(RETRY));
                let delayed = Input::TaskDelayed {
                    key: task,
                    task: Task::ListRepos(host.clone()),
                    retry_at,
                };
                applier.apply(delayed).await?;
                return Ok(Listed::Failed(error));
            }
        };
        let next = page
            .cursor
            .clone()
            .filter(|next| !page.repos.is_empty() && Some(next) != cursor.as_ref());
        let repos = page.repos.iter().filter_map(|repo| {
            Some(ListedRepo {
                did: repo.did.parse().ok()?,
                head: repo.head.as_ref().and_then(|head| head.parse().ok()),
                status: AccountStatus::from_wire(repo.active.unwrap_or(true), repo.status.as_deref()),
            })
        });
        let finished = next.is_none();
        let listing = match &next {
            Some(next) => Listing::Unfinished {
                cursor: Some(next.clone()),
            },
            None => Listing::Finished { at: clock.now() },
        };
        let page = ListedPage {
            host: host.clone(),
            repos: repos.collect(),
            asked_at,
            listing,
            task: finished.then(|| task.clone()),
        };
        applier.apply(Input::Listed(page)).await?;
        if finished {
            return Ok(Listed::Finished);
        }
        cursor = next;
    }
}
