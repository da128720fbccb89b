//! A repository that is held as rows: proven as a fetched one is, by its signature and by rebuilding its whole tree.

use std::borrow::Cow;
use std::cell::Cell;
use std::io;
use std::ops::ControlFlow;

use super::RejectReason;
use super::commit::RECORD_BYTES_MAX;
use super::full_repo::{HeadKey, RepoFault, SignedHead, VerifiedRepo, check_head};
use crate::repo::cbor::check_canonical;
use crate::repo::export::{ExportError, RecordRows, RowVisitor, prove};
use crate::repo::mst::BlockSource;
use crate::types::{Cid, Did, Timestamp};

/// Why rows are not accepted as a repository.
#[derive(Debug, thiserror::Error)]
pub enum RowsFault<E: std::error::Error + 'static> {
    /// The head does not pass a gate.
    #[error("its head does not verify: {}", .0.label())]
    Head(RejectReason),
    /// The rows are not what the head signs, or could not be read.
    #[error(transparent)]
    Rows(#[from] ExportError<E>),
    /// A record is larger than 1 MiB.
    #[error("it has a record that is larger than 1 MiB")]
    RecordTooLarge,
}

/// One block, as a source.
struct OneBlock<'b>(Cid, &'b [u8]);

impl BlockSource for OneBlock<'_> {
    fn block(&self, cid: &Cid) -> io::Result<Option<Cow<'_, [u8]>>> {
        Ok((self.0 == *cid).then_some(Cow::Borrowed(self.1)))
    }
}

/// Rows that are counted as they are scanned.
struct Counted<'r, R: ?Sized> {
    rows: &'r R,
    noncanonical: Cell<u64>,
    too_large: Cell<bool>,
}

impl<R: RecordRows + ?Sized> RecordRows for Counted<'_, R> {
    type Error = R::Error;

    fn scan(&self, from: Option<&[u8]>, visit: &mut RowVisitor<'_>) -> Result<(), R::Error> {
        self.rows.scan(from, &mut |path, cid, bytes| {
            let strict = check_canonical(bytes).is_ok();
            self.noncanonical
                .set(self.noncanonical.get() + u64::from(!strict));
            if bytes.len() > RECORD_BYTES_MAX {
                self.too_large.set(true);
                return ControlFlow::Break(());
            }
            visit(path, cid, bytes)
        })
    }
}

/// Proves rows: every record is hashed, the tree rebuilt to the root that `block` names, and `block` signed with `key`.
///
/// # Errors
/// The first thing that is not as it must be.
pub fn check_rows<'k, R: RecordRows + ?Sized>(
    rows: &R,
    block: &[u8],
    did: &Did,
    key: impl Into<HeadKey<'k>>,
    now: Timestamp,
) -> Result<VerifiedRepo, RowsFault<R::Error>> {
    let root = Cid::of_block(block);
    let head = check_head::<_, io::Error>(&OneBlock(root, block), root, did, key.into(), now);
    let SignedHead {
        commit,
        block,
        signed_by,
    } = head.map_err(|fault| match fault {
        RepoFault::Head(reason) => RowsFault::Head(reason),
        _ => RowsFault::Head(RejectReason::CommitMissing),
    })?;
    let counted = Counted {
        rows,
        noncanonical: Cell::new(0),
        too_large: Cell::new(false),
    };
    let proven = prove(&counted, commit.data);
    if counted.too_large.get() {
        return Err(RowsFault::RecordTooLarge);
    }
    let proven = proven?;
    Ok(VerifiedRepo::of_rows(
        commit,
        root,
        block,
        (
            proven.records(),
            proven.record_bytes(),
            counted.noncanonical.get(),
        ),
        signed_by,
    ))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::convert::Infallible;

    use super::*;
    use crate::sim::SimAccount;
    use crate::sim::account::post;
    use crate::verify::KeyStanding;

    const NOW: Timestamp = Timestamp::from_micros(1_800_000_000_000_000);

    struct Held(BTreeMap<Vec<u8>, Vec<u8>>);

    impl RecordRows for Held {
        type Error = Infallible;

        fn scan(&self, from: Option<&[u8]>, visit: &mut RowVisitor<'_>) -> Result<(), Infallible> {
            for (path, bytes) in self.0.range(from.unwrap_or_default().to_vec()..) {
                if visit(path, Cid::of_block(bytes), bytes).is_break() {
                    break;
                }
            }
            Ok(())
        }
    }

    #[test]
    fn rows_are_a_repository_only_whole_and_signed() {
        let mut account = SimAccount::new(1, NOW);
        let path = |i: u32| format!("app.bsky.feed.post/r{i}");
        let writes: Vec<_> = (0..40)
            .map(|i| (path(i), Some(post(&format!("text {i}")))))
            .collect();
        account.commit(1, &writes, NOW);
        let rows = writes
            .into_iter()
            .map(|(path, bytes)| (path.into_bytes(), bytes.expect("put")));
        let mut rows = Held(rows.collect());
        let key = account.key();
        let check = |rows: &Held, key: &crate::repo::signing_key::SigningKey| {
            check_rows(rows, account.commit_block(), account.did(), key, NOW)
        };
        let repo = check(&rows, &key).expect("whole");
        assert_eq!(
            (repo.records(), repo.cid(), repo.noncanonical()),
            (40, account.head(), 0)
        );
        assert_eq!(repo.signed_by(), &KeyStanding::Current);

        let other = SimAccount::new(2, NOW).key();
        assert!(matches!(
            check(&rows, &other),
            Err(RowsFault::Head(RejectReason::BadSignature))
        ));
        let gone = rows.0.remove(path(7).as_bytes()).expect("there");
        assert!(matches!(
            check(&rows, &key),
            Err(RowsFault::Rows(ExportError::OtherRoot { .. }))
        ));
        rows.0.insert(path(7).into_bytes(), post("another"));
        assert!(check(&rows, &key).is_err());
        rows.0.insert(path(7).into_bytes(), gone);
        rows.0.insert(path(77).into_bytes(), post("one too many"));
        assert!(check(&rows, &key).is_err());
    }
}
