//! Many accounts of one host that go at once: taken down, suspended, deactivated, deleted, or no longer known there.
//!
//! One account goes every day, and its status says all. When many go within a day, someone took over the host, or
//! lost its data, or shuts it down: then an alarm is raised, and all of them are pinned, so that no time of grace
//! ends for them before a person has looked.

use std::ops::ControlFlow;
use std::time::Duration;

use super::super::keyspace::{AlarmId, AlarmKind};
use super::super::reader::Mirror;
use super::super::rows::{AccountRow, Pin, PinReason};
use super::super::store::StoreError;
use super::{Applier, Group};
use crate::types::{Did, HostName, Timestamp};

/// Fewer accounts are never many.
const GONE_MIN: u64 = 10;
/// They are counted by the hour, for this many hours.
const HOURS: u64 = 24;
const HOUR: Duration = Duration::from_secs(3600);

impl Applier {
    /// The host of an account says that it is on, or not: told before the row takes the new status.
    pub(super) fn note_away(group: &mut Group<'_>, did: &Did, row: &mut AccountRow, on: bool) {
        if on {
            row.away_since = None;
            return;
        }
        let was_on = row.upstream.is_active() && row.away_since.is_none();
        row.away_since = row.away_since.or(Some(group.now));
        if was_on && row.head.is_some() {
            group.gone.push(did.clone());
        }
    }

    /// Counts the accounts that went in the last step; many within a day raise an alarm.
    pub(super) fn count_gone(&self, group: &mut Group<'_>) -> Result<(), StoreError> {
        for did in std::mem::take(&mut group.gone) {
            let Some(row) = self.account(group, &did)? else {
                continue;
            };
            let Some(mut host) = group.stage.host(&row.host)? else {
                continue;
            };
            let gone = count_by_hour(&mut host.gone, group.now, 1);
            // The totals are of before this stage, and have those that went in it.
            let staged = group.stage.count_gone(&row.host);
            let active = self.totals.active.get(&row.host).copied().unwrap_or(0);
            let before = active.saturating_add(gone).saturating_sub(staged);
            let many = gone >= GONE_MIN
                && gone.saturating_mul(100) >= before.saturating_mul(self.limits.gone_percent);
            if many {
                host.gone.clear();
            }
            group.stage.put_host(&row.host, host);
            if many {
                let message = format!(
                    "{gone} of {before} accounts of {} went within a day: taken down, suspended, deactivated, deleted, or \
                     no longer known there. Nothing of them is deleted here; all are pinned until you have looked",
                    row.host
                );
                Self::raise(group, &row.host, AlarmKind::MassTakedown, "", message, Vec::new())?;
                self.pin_gone(group, &row.host)?;
            } else if is_open(group, &row.host)? {
                self.pin_one(group, &did)?;
            }
        }
        Ok(())
    }

    /// Pins every account of a host that went within the day.
    fn pin_gone(&self, group: &mut Group<'_>, host: &HostName) -> Result<(), StoreError> {
        let since = group.now.minus(HOUR * u32::try_from(HOURS).unwrap_or(u32::MAX));
        let mut dids = group.stage.seen_accounts();
        Mirror::new(group.stage.store()).each_account(|did, row| {
            if row.host == *host && row.away_since.is_some_and(|at| at >= since) {
                dids.push(did);
            }
            ControlFlow::Continue(())
        })?;
        for did in dids {
            let row = self.account(group, &did)?;
            if row.is_some_and(|row| row.host == *host && row.away_since.is_some_and(|at| at >= since)) {
                self.pin_one(group, &did)?;
            }
        }
        Ok(())
    }

    fn pin_one(&self, group: &mut Group<'_>, did: &Did) -> Result<(), StoreError> {
        let Some(mut row) = self.account(group, did)? else {
            return Ok(());
        };
        let reason = PinReason::MassTakedown;
        if row.pins.iter().any(|pin| pin.reason == reason) {
            return Ok(());
        }
        row.pins.push(Pin {
            generation: None,
            head: row.head.clone(),
            snapshot: row.snapshot,
            since: group.now,
            reason,
        });
        group.stage.put_account(did, row);
        Ok(())
    }
}

/// Adds to what is counted by the hour; how many it is within the day.
pub(super) fn count_by_hour(hours: &mut Vec<(u64, u64)>, now: Timestamp, more: u64) -> u64 {
    let hour = now.millis() / (HOUR.as_secs() * 1000);
    hours.retain(|(then, _)| then.saturating_add(HOURS) > hour);
    match hours.last_mut() {
        Some((then, count)) if *then == hour => *count += more,
        _ => hours.push((hour, more)),
    }
    hours.iter().map(|(_, count)| count).sum()
}

/// Whether the host's alarm stands, and nobody has seen it.
fn is_open(group: &Group<'_>, host: &HostName) -> Result<bool, StoreError> {
    let id = AlarmId {
        host: Some(host.clone()),
        kind: AlarmKind::MassTakedown,
        subject: String::new(),
    };
    Ok(group
        .stage
        .alarm(&id)?
        .is_some_and(|row| row.acknowledged.is_none()))
}
