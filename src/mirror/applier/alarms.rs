//! What an operator has to look at, and what is kept until he did.

use std::ops::ControlFlow;

use super::super::keyspace::{self, AlarmId, AlarmKind};
use super::super::reader::Mirror;
use super::super::rows::{AccountRow, Acknowledged, AlarmRow, DeleteWindow, Pin, PinReason, Row as _};
use super::super::store::{Family, StoreError};
use super::{Applier, Group, Note};
use crate::types::{Did, Digest, HostName, Rev, Timestamp};

/// Generations kept for one account, at most: the oldest ones stay, for they hold what was lost first.
const PINS_MAX: usize = 4;
/// Longest message that an alarm grows to, in bytes.
const MESSAGE_BYTES_MAX: usize = 16 * 1024;
/// Alarms of one host that are kept one by one. Past them one stands for all of its kind.
const ALARMS_MAX: usize = 1000;
/// So many records that go within a window, if they are the share that is set besides, are a mass deletion.
const MASS_DELETE_RECORDS: u64 = 100;
/// The window.
const MASS_DELETE_WINDOW: std::time::Duration = std::time::Duration::from_secs(24 * 3600);
/// A host that was rolled back is watched this long: what its accounts lose in a swap is kept.
const ROLLBACK_WATCH: std::time::Duration = std::time::Duration::from_secs(30 * 24 * 3600);

impl Applier {
    /// Raises an alarm, unless it stands already and nobody has seen it.
    pub(super) fn raise(
        group: &mut Group<'_>,
        host: &HostName,
        kind: AlarmKind,
        subject: &str,
        message: String,
        pinned: Vec<u64>,
    ) -> Result<(), StoreError> {
        let id = AlarmId {
            host: Some(host.clone()),
            kind,
            subject: subject.to_owned(),
        };
        // What a person has seen does not hide what happens after it.
        let before = group.stage.alarm(&id)?;
        if before.as_ref().is_some_and(|row| row.acknowledged.is_none()) {
            return Ok(());
        }
        if before.is_none() && !Self::make_room(group, host)? {
            // The kinds that can be so many are about accounts, and leave the empty subject free.
            let many = AlarmId {
                subject: String::new(),
                ..id
            };
            if group
                .stage
                .alarm(&many)?
                .is_some_and(|row| row.acknowledged.is_none())
            {
                return Ok(());
            }
            let message = format!(
                "more than {ALARMS_MAX} alarms of {host} are open, and no more are kept one by one; the newest is about \
                 {subject}: {message}"
            );
            group.notes.push(Note::Alarm {
                host: host.clone(),
                kind,
                message: message.clone(),
            });
            let row = AlarmRow {
                since: group.now,
                message,
                pinned,
                acknowledged: None,
            };
            group.stage.put_alarm(&many, row);
            return Ok(());
        }
        let mut kept = before.map_or_else(Vec::new, |row| row.pinned);
        kept.extend(pinned);
        group.notes.push(Note::Alarm {
            host: host.clone(),
            kind,
            message: message.clone(),
        });
        group.stage.put_alarm(
            &id,
            AlarmRow {
                since: group.now,
                message,
                pinned: kept,
                acknowledged: None,
            },
        );
        Ok(())
    }

    /// Raises an alarm; one that stands already and nobody has seen says this too.
    pub(super) fn raise_more(
        group: &mut Group<'_>,
        host: &HostName,
        kind: AlarmKind,
        subject: &str,
        message: String,
    ) -> Result<(), StoreError> {
        let id = AlarmId {
            host: Some(host.clone()),
            kind,
            subject: subject.to_owned(),
        };
        let Some(mut open) = group.stage.alarm(&id)?.filter(|row| row.acknowledged.is_none()) else {
            return Self::raise(group, host, kind, subject, message, Vec::new());
        };
        if open.message.len() + message.len() <= MESSAGE_BYTES_MAX {
            open.message.push_str(&format!("\n{message}"));
            group.stage.put_alarm(&id, open);
        }
        let host = host.clone();
        group.notes.push(Note::Alarm { host, kind, message });
        Ok(())
    }

    /// Whether a host may have one more alarm. Where it has many, one that a person has seen goes, the oldest first.
    fn make_room(group: &mut Group<'_>, host: &HostName) -> Result<bool, StoreError> {
        let (mut count, mut seen) = (group.stage.new_alarms(host), None::<(Timestamp, Vec<u8>)>);
        let mut bad = None;
        let range = keyspace::alarm_range(Some(host));
        group
            .stage
            .store()
            .scan(Family::Alarms, &range, &mut |key, value| {
                count += 1;
                match AlarmRow::decode(value) {
                    Ok(row) if row.acknowledged.is_some() => {
                        if seen.as_ref().is_none_or(|(since, _)| row.since < *since) {
                            seen = Some((row.since, key.to_vec()));
                        }
                    }
                    Ok(_) => {}
                    Err(error) => bad = Some(StoreError::bad_row(Family::Alarms, key, error)),
                }
                if bad.is_some() {
                    ControlFlow::Break(())
                } else {
                    ControlFlow::Continue(())
                }
            })?;
        bad.map_or(Ok(()), Err)?;
        if count < ALARMS_MAX {
            return Ok(true);
        }
        Ok(seen.is_some_and(|(_, key)| group.stage.drop_alarm(key)))
    }

    /// Raises an alarm about a host as a whole.
    pub(super) fn raise_at(
        group: &mut Group<'_>,
        host: &HostName,
        kind: AlarmKind,
        message: String,
    ) -> Result<(), StoreError> {
        Self::raise(group, host, kind, "", message, Vec::new())
    }

    /// Raises an alarm that is no host's, or renews what it says.
    pub(super) fn raise_own(
        group: &mut Group<'_>,
        kind: AlarmKind,
        message: String,
    ) -> Result<(), StoreError> {
        let id = AlarmId {
            host: None,
            kind,
            subject: String::new(),
        };
        let open = group.stage.alarm(&id)?.filter(|row| row.acknowledged.is_none());
        let row = AlarmRow {
            since: open.map_or(group.now, |row| row.since),
            message,
            pinned: Vec::new(),
            acknowledged: None,
        };
        group.stage.put_alarm(&id, row);
        Ok(())
    }

    /// A person has seen an alarm. It stays until then, and what it keeps stays longer.
    pub(super) fn on_acknowledged(group: &mut Group<'_>, id: &AlarmId, by: String) -> Result<(), StoreError> {
        if let Some(mut row) = group.stage.alarm(id)?
            && row.acknowledged.is_none()
        {
            row.acknowledged = Some(Acknowledged { by, at: group.now });
            group.stage.put_alarm(id, row);
        }
        Ok(())
    }

    /// Before a commit's changes: counts the records that go, of those that were there when the day's first one went,
    /// and how many fewer there are than there were. Many raise an alarm, which says what is left; records that come
    /// and go do not. `deleted` are the revs of those that this commit deletes.
    pub(super) fn count_deletes(
        &self,
        group: &mut Group<'_>,
        did: &Did,
        row: &mut AccountRow,
        deleted: &[Rev],
        added: u64,
    ) -> Result<(), StoreError> {
        let open = row.deletes.take();
        let open = open.filter(|window| group.now.since(window.since) <= MASS_DELETE_WINDOW);
        if deleted.is_empty() && open.is_none() {
            return Ok(());
        }
        let mut window = open.unwrap_or_else(|| DeleteWindow {
            since: group.now,
            rev: row.head.as_ref().map(|head| head.rev),
            records: row.records,
            deleted: 0,
            alarmed: false,
        });
        let after = (row.records + added).saturating_sub(deleted.len() as u64);
        window.records = window.records.max(row.records).max(after);
        window.deleted += deleted.iter().filter(|rev| Some(**rev) <= window.rev).count() as u64;
        let gone = window.deleted.max(window.records - after);
        let percent = self.limits.deleted_percent;
        let mass =
            gone >= MASS_DELETE_RECORDS && gone.saturating_mul(100) >= window.records.saturating_mul(percent);
        if mass && !window.alarmed {
            window.alarmed = true;
            let snapshot = row.snapshot;
            let left = match &snapshot {
                Some(mark) => format!("its newest snapshot in the archive is of rev {}", mark.rev),
                None => "no snapshot of it was archived, so they are gone".to_owned(),
            };
            let message = format!(
                "{did} lost {gone} of the {} records that it had within a day; {left}",
                window.records
            );
            if row.pins.iter().filter(|pin| pin.generation.is_none()).count() < PINS_MAX {
                let (since, reason) = (group.now, PinReason::MassDelete);
                row.pins.push(Pin {
                    generation: None,
                    head: None,
                    snapshot,
                    since,
                    reason,
                });
            }
            let host = row.host.clone();
            Self::raise(
                group,
                &host,
                AlarmKind::MassDelete,
                did.as_str(),
                message,
                Vec::new(),
            )?;
        }
        row.deletes = Some(window);
        Ok(())
    }

    /// Before a generation is replaced: decides whether it is kept, and says so. Returns whether it is.
    pub(super) fn pin_if_lost(
        &self,
        group: &mut Group<'_>,
        did: &Did,
        row: &mut AccountRow,
        new_number: u64,
        was_diverged: bool,
        sound: bool,
    ) -> Result<bool, StoreError> {
        let old = row.account_number;
        let Some(head) = row.head.clone() else {
            return Ok(false);
        };
        if old == keyspace::NO_NUMBER {
            return Ok(false);
        }
        // Rows that are damaged cannot be compared: where something may have been lost they are kept as they are.
        let Lost { gone: lost, changed } = match sound {
            true => lost_records(group, old, new_number)?,
            false => Lost { gone: 0, changed: 1 },
        };
        let rolled_back = group.stage.host(&row.host)?.and_then(|host| host.rolled_back_at);
        let watched = rolled_back.is_some_and(|at| group.now.since(at) < ROLLBACK_WATCH);
        let percent = self.limits.deleted_percent;
        let mass =
            lost >= MASS_DELETE_RECORDS && lost.saturating_mul(100) >= row.records.saturating_mul(percent);
        let (kind, reason) = match () {
            () if lost + changed > 0 && (watched || was_diverged) => {
                (AlarmKind::Rollback, PinReason::Rollback)
            }
            () if mass => (AlarmKind::MassDelete, PinReason::MassDelete),
            () => return Ok(false),
        };
        let host = row.host.clone();
        let differs = format!(
            "{did}: the host's repository lacks {lost} records that it had at rev {}, and {changed} are not as they \
             were",
            head.rev
        );
        if row.pins.iter().filter(|pin| pin.generation.is_some()).count() >= PINS_MAX {
            let message = format!("{differs}; {PINS_MAX} older copies are kept already, and this one is NOT");
            Self::raise(group, &host, kind, did.as_str(), message, Vec::new())?;
            return Ok(false);
        }
        let message = format!("{differs}; what we held is kept beside it (generation {old})");
        row.pins.push(Pin {
            generation: Some(old),
            head: Some(head),
            snapshot: row.snapshot,
            since: group.now,
            reason,
        });
        Self::raise(group, &host, kind, did.as_str(), message, vec![old])?;
        Ok(true)
    }
}

/// What a generation lacks of the one before it, in records.
#[derive(Default)]
struct Lost {
    /// Paths that are no longer there.
    gone: u64,
    /// Paths that hold another record.
    changed: u64,
}

/// How one generation differs from the one before it: two sorted scans, merged.
fn lost_records(group: &Group<'_>, old: u64, new: u64) -> Result<Lost, StoreError> {
    let store = group.stage.store();
    let mut lost = Lost::default();
    let mut after: Option<Vec<u8>> = None;
    loop {
        // A page of old paths, then the same stretch of the new generation.
        let mut page: Vec<(Vec<u8>, Digest)> = Vec::with_capacity(PAGE);
        Mirror::new(store).scan_records(old, after.as_deref(), &mut |path, record| {
            if after.as_deref() != Some(path) {
                page.push((path.to_vec(), record.digest));
            }
            if page.len() == PAGE {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        })?;
        let (Some((first, _)), Some((last, _))) = (page.first().cloned(), page.last().cloned()) else {
            return Ok(lost);
        };
        let mut there = 0u64;
        let mut pending = page.iter().peekable();
        Mirror::new(store).scan_records(new, Some(&first), &mut |path, record| {
            while pending.next_if(|(old, _)| old.as_slice() < path).is_some() {}
            if let Some((_, digest)) = pending.next_if(|(old, _)| old.as_slice() == path) {
                there += 1;
                lost.changed += u64::from(*digest != record.digest);
            }
            if path >= last.as_slice() {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        })?;
        lost.gone += page.len() as u64 - there;
        after = Some(last);
    }
}

/// Paths compared at once.
const PAGE: usize = 4096;
