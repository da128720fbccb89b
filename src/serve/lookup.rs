//! What the public may see of the mirror: the one place that decides it.
//!
//! Hidden means hidden: an account that its host reports as taken down, suspended, deactivated or deleted is not
//! served, whatever is held of it; and a blob is served only while a live record of the very account refers
//! to it, and its host does not withhold it.

use std::collections::BinaryHeap;

use crate::mirror::reader::Mirror;
use crate::mirror::rows::{AccountRow, AccountStatus, BlobRow, Head, KeptCar};
use crate::mirror::{StoreError, keyspace};
use crate::types::{Cid, Codec, Did, Digest, Rev};

use super::response::XrpcError;

/// Accounts that a listing reads at a time.
const ACCOUNTS_READ: usize = 256;
/// Blobs of one bucket that a listing reads at a time.
const BLOBS_READ: usize = 1024;
/// Records that are looked at to tell whether a blob is newer than a rev; past them it counts as newer.
const REFERRERS_MAX: usize = 10_000;

/// What a caller may see beside what everybody may.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Sight {
    /// Nothing.
    Public,
    /// This account while it is off: its PDS has it too.
    Own(Did),
    /// All that is held of it.
    AllOf(Did),
    /// All that is held.
    All,
}

/// Why a look-up gave nothing.
#[derive(Debug)]
pub(super) enum Failure {
    /// The caller is told why.
    Told(XrpcError),
    /// The store failed: the log is told why.
    Store(StoreError),
}

impl From<XrpcError> for Failure {
    fn from(error: XrpcError) -> Self {
        Self::Told(error)
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

/// An account that is served, and the commit that our copy of it stands at.
pub(super) struct Served {
    pub(super) did_number: u64,
    pub(super) account_number: u64,
    pub(super) head: Head,
}

/// The account, if it is served.
pub(super) fn served(mirror: &Mirror<'_>, did: &Did, sight: &Sight) -> Result<Served, Failure> {
    let row = mirror
        .account(did)?
        .ok_or_else(|| XrpcError::RepoNotFound(did.clone()))?;
    check_visible(&row.upstream, did, sight)?;
    match row.head {
        Some(head) if row.account_number != keyspace::NO_NUMBER => Ok(Served {
            did_number: row.did_number,
            account_number: row.account_number,
            head,
        }),
        _ => Err(XrpcError::RepoNotFound(did.clone()).into()),
    }
}

/// What `getRepo` gives of an account.
pub(super) enum Exported {
    /// A copy that proves.
    Proven(Served),
    /// There is none: what its host gave, as it came, though it does not rebuild to its signed root.
    AsItCame(KeptCar),
}

impl Exported {
    /// The commit that it stands at.
    pub(super) const fn commit(&self) -> Cid {
        match self {
            Self::Proven(served) => served.head.commit,
            Self::AsItCame(car) => car.commit,
        }
    }
}

/// The repository, if the account is served. A proven copy goes before a newer one that does not rebuild.
pub(super) fn exported(mirror: &Mirror<'_>, did: &Did, sight: &Sight) -> Result<Exported, Failure> {
    let row = mirror
        .account(did)?
        .ok_or_else(|| XrpcError::RepoNotFound(did.clone()))?;
    match (row.head.is_none(), row.kept_car) {
        (true, Some(car)) => {
            check_visible(&row.upstream, did, sight)?;
            Ok(Exported::AsItCame(car))
        }
        _ => served(mirror, did, sight).map(Exported::Proven),
    }
}

/// Whether a caller may see an account of this status.
pub(super) fn check_visible(status: &AccountStatus, did: &Did, sight: &Sight) -> Result<(), XrpcError> {
    let seen = match sight {
        Sight::Public => false,
        // What is deleted at its host is no longer the host's: it does not come back on its word.
        Sight::Own(own) => own == did && *status != AccountStatus::Deleted,
        Sight::AllOf(own) => own == did,
        Sight::All => true,
    };
    let did = || did.clone();
    match status {
        _ if seen => Ok(()),
        AccountStatus::Active | AccountStatus::Desynchronized | AccountStatus::Throttled => Ok(()),
        AccountStatus::Deactivated => Err(XrpcError::RepoDeactivated(did())),
        AccountStatus::Suspended => Err(XrpcError::RepoSuspended(did())),
        AccountStatus::Takendown => Err(XrpcError::RepoTakendown(did())),
        // Inactive for a reason that the host does not tell, or that we do not know: as if it were not here.
        AccountStatus::Deleted | AccountStatus::Other(_) => Err(XrpcError::RepoNotFound(did())),
    }
}

/// An account's row, whatever its status, once something of it was held.
pub(super) fn known(mirror: &Mirror<'_>, did: &Did) -> Result<(AccountRow, Head), Failure> {
    let row = mirror
        .account(did)?
        .ok_or_else(|| XrpcError::RepoNotFound(did.clone()))?;
    match row.head.clone() {
        Some(head) => Ok((row, head)),
        None => Err(XrpcError::RepoNotFound(did.clone()).into()),
    }
}

/// An account in a listing.
pub(super) struct Listed {
    pub(super) did: Did,
    pub(super) status: AccountStatus,
    pub(super) head: Head,
}

/// A page of accounts of which something is held, after a DID, in the order of DIDs; and whether there are
/// more. Deleted ones are left out.
pub(super) fn accounts_page(
    mirror: &Mirror<'_>,
    after: Option<Did>,
    limit: usize,
) -> Result<(Vec<Listed>, bool), Failure> {
    let (mut page, mut after) = (Vec::new(), after);
    loop {
        let read = mirror.accounts(after.as_ref().map(Did::as_str), ACCOUNTS_READ)?;
        let last_read = read.len() < ACCOUNTS_READ;
        after = read.last().map(|(did, _)| did.clone()).or(after);
        for (did, row) in read {
            let Some(head) = row.head.filter(|_| row.upstream != AccountStatus::Deleted) else {
                continue;
            };
            if page.len() == limit {
                return Ok((page, true));
            }
            page.push(Listed {
                did,
                status: row.upstream,
                head,
            });
        }
        if last_read {
            return Ok((page, false));
        }
    }
}

/// A blob that is served: what is known of it.
pub(super) fn served_blob(
    mirror: &Mirror<'_>,
    did: &Did,
    cid: &Cid,
    sight: &Sight,
) -> Result<(Served, BlobRow), Failure> {
    let account = served(mirror, did, sight)?;
    let digest = cid.digest();
    // A record is not a blob, even under the same digest.
    if cid.codec() != Codec::Raw || !mirror.blob_is_referenced(account.account_number, digest)? {
        return Err(XrpcError::BlobNotFound.into());
    }
    match mirror.blob(account.did_number, digest)? {
        Some(row) if row.state.is_stored() && row.withheld_since.is_none() => Ok((account, row)),
        _ => Err(XrpcError::BlobNotFound.into()),
    }
}

/// A page of the blobs that an account's records refer to, after a CID, in the order of the CIDs' text form;
/// and whether there are more.
///
/// That order is the one of the reference PDS, where a CID is text. It is not the order of digests: in base32
/// the values 26 to 31 are written as digits, and digits sort before letters. A CID's text first tells the
/// digest's top three bits and then its next five, so the blobs are read in 256 buckets, one for each first
/// byte, in the order of the texts, and each bucket is sorted by text. A page reads what stands in its own
/// buckets only.
pub(super) fn blobs_page(
    mirror: &Mirror<'_>,
    account_number: u64,
    since: Option<Rev>,
    after: Option<Cid>,
    limit: usize,
) -> Result<(Vec<String>, bool), Failure> {
    let newer = |digest: &Digest| is_newer(mirror, account_number, digest, since);
    referenced_page(mirror, account_number, after, limit, newer)
}

/// A page of those of them whose bytes are not here, in the same order; and whether there are more. What a host
/// withholds is not missing.
pub(super) fn missing_blobs_page(
    mirror: &Mirror<'_>,
    account: &Served,
    after: Option<Cid>,
    limit: usize,
) -> Result<(Vec<Cid>, bool), Failure> {
    let is_missing = |digest: &Digest| -> Result<bool, Failure> {
        let row = mirror.blob(account.did_number, digest)?;
        Ok(row.is_none_or(|row| !row.state.is_stored()))
    };
    let (texts, more) = referenced_page(mirror, account.account_number, after, limit, is_missing)?;
    let cid = |text: &String| text.parse().expect("the text of a CID");
    Ok((texts.iter().map(cid).collect(), more))
}

fn referenced_page(
    mirror: &Mirror<'_>,
    account_number: u64,
    after: Option<Cid>,
    limit: usize,
    counts: impl Fn(&Digest) -> Result<bool, Failure>,
) -> Result<(Vec<String>, bool), Failure> {
    let mut page = Vec::new();
    let begun = after.map(|cid| cid.digest()[0]);
    let after = after.map(|cid| cid.to_string());
    for first_byte in first_bytes_in_text_order().skip_while(|byte| begun.is_some_and(|begun| *byte != begun))
    {
        // The least texts of the bucket, as many as the page may still need and one more.
        let room = limit + 1 - page.len();
        let mut least = BinaryHeap::new();
        each_blob_in_bucket(mirror, account_number, first_byte, |digest| {
            let text = Cid::raw(*digest).to_string();
            let wanted = after.as_ref().is_none_or(|after| text > *after)
                && (least.len() < room || least.peek().is_some_and(|greatest| text < *greatest))
                && counts(digest)?;
            if wanted {
                least.push(text);
                if least.len() > room {
                    least.pop();
                }
            }
            Ok(())
        })?;
        page.extend(least.into_sorted_vec());
        if page.len() > limit {
            page.truncate(limit);
            return Ok((page, true));
        }
    }
    Ok((page, false))
}

/// First bytes of digests, in the order of the text forms of their CIDs.
fn first_bytes_in_text_order() -> impl Iterator<Item = u8> {
    (0..8).flat_map(|top: u8| (26..32).chain(0..26).map(move |low: u8| (top << 5) | low))
}

/// Visits the blobs whose digest begins with this byte.
fn each_blob_in_bucket(
    mirror: &Mirror<'_>,
    account_number: u64,
    first_byte: u8,
    mut visit: impl FnMut(&Digest) -> Result<(), Failure>,
) -> Result<(), Failure> {
    // The greatest digest of the bucket before.
    let mut after = first_byte.checked_sub(1).map(|before| {
        let mut digest = [0xff; 32];
        digest[0] = before;
        digest
    });
    loop {
        let read = mirror.blob_refs_page(account_number, after.as_ref(), BLOBS_READ)?;
        for digest in &read {
            if digest[0] != first_byte {
                return Ok(());
            }
            visit(digest)?;
        }
        if read.len() < BLOBS_READ {
            return Ok(());
        }
        after = read.last().copied();
    }
}

/// Whether a record newer than `since` refers to the blob. With very many records, yes: a listing may say too
/// much, never too little.
fn is_newer(
    mirror: &Mirror<'_>,
    account_number: u64,
    digest: &Digest,
    since: Option<Rev>,
) -> Result<bool, Failure> {
    let Some(since) = since else {
        return Ok(true);
    };
    let paths = mirror.blob_referrers(account_number, digest, REFERRERS_MAX)?;
    for path in &paths {
        let record = mirror.record(account_number, path.as_bytes())?;
        if record.is_some_and(|record| record.rev > since) {
            return Ok(true);
        }
    }
    Ok(paths.len() == REFERRERS_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_come_in_the_order_of_texts() {
        let texts: Vec<String> = first_bytes_in_text_order()
            .map(|byte| {
                let mut digest = [0; 32];
                digest[0] = byte;
                Cid::raw(digest).to_string()
            })
            .collect();
        assert_eq!(texts.len(), 256);
        assert!(texts.is_sorted(), "{texts:?}");
    }

    #[test]
    fn what_is_inactive_is_hidden_under_its_own_name() {
        let did: Did = "did:plc:ewvi7nxzyoun6zhxrhs64oiz".parse().expect("valid");
        let name = |active, status| {
            let status = AccountStatus::from_wire(active, status);
            check_visible(&status, &did, &Sight::Public).map_err(|error| error.name())
        };
        for status in [
            None,
            Some("desynchronized"),
            Some("throttled"),
            Some("new-in-2030"),
        ] {
            assert_eq!(name(true, status), Ok(()), "{status:?}");
        }
        for (status, want) in [
            (Some("deactivated"), "RepoDeactivated"),
            (Some("suspended"), "RepoSuspended"),
            (Some("takendown"), "RepoTakendown"),
            (Some("deleted"), "RepoNotFound"),
            (Some("new-in-2030"), "RepoNotFound"),
            (Some("throttled"), "RepoNotFound"),
            (None, "RepoNotFound"),
        ] {
            assert_eq!(name(false, status), Err(want), "{status:?}");
        }
    }

    #[test]
    fn an_account_sees_itself_and_only_its_owner_what_is_deleted() {
        let did: Did = "did:plc:ewvi7nxzyoun6zhxrhs64oiz".parse().expect("valid");
        let other: Did = "did:plc:zzzzzzzzzzzzzzzzzzzzzzzz".parse().expect("valid");
        for (status, own) in [
            (AccountStatus::Deactivated, true),
            (AccountStatus::Suspended, true),
            (AccountStatus::Takendown, true),
            (AccountStatus::Other("new-in-2030".to_owned()), true),
            (AccountStatus::Deleted, false),
        ] {
            let sees = |sight: &Sight| check_visible(&status, &did, sight).is_ok();
            assert!(!sees(&Sight::Public), "{status:?}");
            assert_eq!(sees(&Sight::Own(did.clone())), own, "{status:?}");
            assert!(!sees(&Sight::Own(other.clone())), "{status:?}");
            assert!(!sees(&Sight::AllOf(other.clone())), "{status:?}");
            assert!(sees(&Sight::AllOf(did.clone())), "{status:?}");
            assert!(sees(&Sight::All), "{status:?}");
        }
    }
}
