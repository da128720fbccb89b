//! What a verification found: every bad object by its name, what that affects, and what was checked, in counts.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::content::Bad;
use crate::archive::names::{BlobName, ObjectName};

/// Findings that are kept with their texts. More are counted.
pub const FINDINGS_MAX: usize = 10_000;
/// Longest object name that is shown, in characters; hostile ones are longer.
const SHOWN_CHARS_MAX: usize = 300;

/// What is wrong with an object, or with what is not there. Labels are an interface: keep stable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// No object of an archive has such a name.
    UnknownName,
    /// Bytes changed, or are missing, or are too many.
    Damaged,
    /// It holds something else than its name says.
    Misnamed,
    /// It is whole, but proves nothing: a tree, a signature, the order of entries.
    Unproven,
    /// An object that must be there is not.
    MissingObject,
    /// A blob that a newest snapshot refers to is not there.
    MissingBlob,
    /// Such a blob, of which the mirror knows that its host never gave it: it cannot be archived.
    NotGiven,
    /// Segments, or changes of an account, that do not follow each other.
    BrokenChain,
    /// Changes or blobs of an account, and nothing that they build on.
    NoSnapshot,
    /// Moments between two revs of an account that nothing holds: not damage, if they were never archived.
    Gap,
    /// A fetched repository that no snapshot holds yet: not off the machine.
    NotYet,
    /// It could not be read just now.
    Unread,
}

impl Fault {
    /// Whether this says that the archive is damaged, not only that something is not known or not held.
    #[must_use]
    pub const fn is_bad(self) -> bool {
        !matches!(self, Self::Gap | Self::NotYet | Self::NotGiven | Self::Unread)
    }

    /// The label, for people and programs.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::UnknownName => "unknown_name",
            Self::Damaged => "damaged",
            Self::Misnamed => "misnamed",
            Self::Unproven => "unproven",
            Self::MissingObject => "missing_object",
            Self::MissingBlob => "missing_blob",
            Self::NotGiven => "not_given",
            Self::BrokenChain => "broken_chain",
            Self::NoSnapshot => "no_snapshot",
            Self::Gap => "gap",
            Self::NotYet => "not_yet",
            Self::Unread => "unread",
        }
    }

    /// What a content check's error is.
    #[must_use]
    pub const fn of(bad: &Bad) -> Self {
        match bad {
            Bad::File(_) | Bad::Car(_) | Bad::Log(_) | Bad::Identity(_) | Bad::Other(_) => Self::Damaged,
            Bad::Misnamed(_) => Self::Misnamed,
            Bad::Commit { .. } | Bad::Tree(_) | Bad::Signature(_) | Bad::Order(_) | Bad::Replay(_) => {
                Self::Unproven
            }
        }
    }
}

/// Something that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// What it is.
    pub fault: Fault,
    /// The object: its name as it stands in the archive, or should.
    pub object: String,
    /// Whose it is, where it is one account's.
    pub did: Option<String>,
    /// What is wrong, for a person.
    pub detail: String,
    /// What this affects, for a person.
    pub affects: String,
}

/// Findings, with a limit on those whose texts are kept.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Findings {
    kept: Vec<Finding>,
    counts: BTreeMap<Fault, u64>,
}

impl Findings {
    /// Adds one.
    pub fn add(&mut self, finding: Finding) {
        *self.counts.entry(finding.fault).or_default() += 1;
        if self.kept.len() < FINDINGS_MAX {
            self.kept.push(finding);
        }
    }

    /// Counts some more of a kind, without their texts.
    pub fn count_more(&mut self, fault: Fault, count: u64) {
        if count > 0 {
            *self.counts.entry(fault).or_default() += count;
        }
    }

    /// Adds those of another.
    pub fn extend(&mut self, other: Self) {
        for (fault, count) in other.counts {
            *self.counts.entry(fault).or_default() += count;
        }
        let room = FINDINGS_MAX.saturating_sub(self.kept.len());
        self.kept.extend(other.kept.into_iter().take(room));
    }

    /// Blobs that are not there, and of which the mirror says why no host gave them, are not lost. Of those whose
    /// texts were not kept nothing is known.
    pub fn explain_missing<E>(
        &mut self,
        mut why: impl FnMut(&BlobName) -> Result<Option<&'static str>, E>,
    ) -> Result<(), E> {
        for finding in &mut self.kept {
            let Ok(ObjectName::Blob(blob)) = finding.object.parse() else {
                continue;
            };
            if finding.fault != Fault::MissingBlob {
                continue;
            }
            if let Some(why) = why(&blob)? {
                finding.fault = Fault::NotGiven;
                finding.detail = format!("it is not lost: {why}");
                let missing = self.counts.entry(Fault::MissingBlob).or_default();
                *missing = missing.saturating_sub(1);
                *self.counts.entry(Fault::NotGiven).or_default() += 1;
            }
        }
        self.counts.retain(|_, count| *count > 0);
        Ok(())
    }

    /// Those whose texts were kept.
    #[must_use]
    pub fn kept(&self) -> &[Finding] {
        &self.kept
    }

    /// How many of each kind.
    #[must_use]
    pub const fn counts(&self) -> &BTreeMap<Fault, u64> {
        &self.counts
    }

    /// Those that say that the archive is damaged.
    #[must_use]
    pub fn bad(&self) -> u64 {
        let bad = self.counts.iter().filter(|(fault, _)| fault.is_bad());
        bad.map(|(_, count)| count).sum()
    }

    fn total(&self) -> u64 {
        self.counts.values().sum()
    }
}

/// What was listed and checked of one kind of object.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KindCounts {
    /// In the list.
    pub listed: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Read and found sound.
    pub sound: u64,
}

/// What was checked.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Objects, by kind.
    pub objects: BTreeMap<String, KindCounts>,
    /// Bytes that were read.
    pub bytes_read: u64,
    /// Blocks of CARs that were hashed.
    pub blocks: u64,
    /// Records of trees that were rebuilt to their signed root.
    pub records: u64,
    /// Deltas whose changes lead from the snapshot that they build on to the root that their last commit signs.
    pub deltas_told: u64,
    /// Commits whose signature was checked.
    pub signatures: u64,
    /// Commits whose signature was not: no identity in the archive.
    pub signatures_not_checked: u64,
    /// Accounts whose newest snapshot's blobs were looked for.
    pub accounts: u64,
    /// Blobs that newest snapshots refer to.
    pub blobs_referenced: u64,
    /// Records whose bytes were erased, and noted as such.
    pub erased_records: u64,
    /// Segments of a writer that another one had taken over from: no part of the log.
    pub stale_segments: u64,
    /// Segments before the beginning of the log, and editions of before: they are to be removed.
    #[serde(default)]
    pub leftover_segments: u64,
    /// JSON objects without a checksum of their own: read, but a flipped bit may go unnoticed.
    pub unsealed: u64,
    /// Objects that went while this ran.
    pub vanished: u64,
    /// Objects that a probe of the store left behind.
    pub probe_leftovers: u64,
}

impl Counts {
    /// Adds what reading one object came to.
    pub fn add(&mut self, tally: super::content::Tally) {
        self.blocks += tally.blocks;
        self.records += tally.records;
        self.signatures += tally.signed;
        self.signatures_not_checked += tally.unsigned;
        self.erased_records += tally.erased;
    }

    /// The counts of a kind.
    pub fn kind(&mut self, kind: &str) -> &mut KindCounts {
        if !self.objects.contains_key(kind) {
            self.objects.insert(kind.to_owned(), KindCounts::default());
        }
        self.objects.get_mut(kind).expect("it was just put there")
    }
}

/// The result of a verification.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The bucket's URL.
    pub archive: String,
    /// The archive's id, if its first object could be read.
    pub id: Option<String>,
    /// Of how many in a million objects the content was read.
    pub sample_per_million: u32,
    /// What chose them.
    pub seed: u64,
    /// What was checked.
    pub counts: Counts,
    /// What is wrong.
    pub findings: Findings,
}

impl Report {
    /// 0: sound; 3: sound as far as it was read, and something is not held or could not be read; 4: damaged.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match (self.findings.bad(), self.findings.total()) {
            (0, 0) => 0,
            (0, _) => 3,
            _ => 4,
        }
    }

    /// For a person.
    #[must_use]
    pub fn text(&self) -> String {
        let mut out = String::new();
        for finding in self.findings.kept() {
            let (label, object) = (finding.fault.label(), shown(&finding.object));
            out.push_str(&format!("{label}  {object}\n  {}\n", shown(&finding.detail)));
            if !finding.affects.is_empty() {
                out.push_str(&format!("  affects: {}\n", shown(&finding.affects)));
            }
        }
        let unshown = self.findings.total() - self.findings.kept().len() as u64;
        if unshown > 0 {
            out.push_str(&format!("and {unshown} more\n"));
        }
        if !out.is_empty() {
            out.push('\n');
        }
        out.push_str(&self.counts_text());
        out.push_str(&self.verdict());
        out
    }

    fn counts_text(&self) -> String {
        let counts = &self.counts;
        let mut out = self.archive.clone();
        match &self.id {
            Some(id) => out.push_str(&format!("  (archive {id})\n")),
            None => out.push('\n'),
        }
        let mut line = |name: &str, value: String| out.push_str(&format!("  {name:<11} {value}\n"));
        for (kind, of) in &counts.objects {
            let KindCounts { listed, sound, .. } = of;
            line(kind, format!("{sound} of {listed} read and sound"));
        }
        line(
            "proven",
            format!(
                "{} blocks hashed; {} records in trees that rebuild to their signed root; {} deltas lead there",
                counts.blocks, counts.records, counts.deltas_told
            ),
        );
        let not_checked = match counts.signatures_not_checked {
            0 => String::new(),
            n => format!("; {n} not checked: no identity in the archive"),
        };
        line(
            "signatures",
            format!("{} checked{not_checked}", counts.signatures),
        );
        let (accounts, referenced) = (counts.accounts, counts.blobs_referenced);
        line(
            "references",
            format!("{referenced} blobs of the newest snapshots of {accounts} accounts looked for"),
        );
        for (count, what) in [
            (counts.erased_records, "records were erased, as noted"),
            (
                counts.stale_segments,
                "segments of a writer that was taken over from: no part of the log",
            ),
            (
                counts.leftover_segments,
                "segments stand before the beginning of the log; the daemon removes them when it prunes next",
            ),
            (
                counts.unsealed,
                "JSON objects without a checksum of their own: a flipped bit may go unnoticed",
            ),
            (counts.vanished, "objects went while this ran"),
            (
                counts.probe_leftovers,
                "objects below v1/probe/ were left behind by a probe; they can be removed",
            ),
        ] {
            if count > 0 {
                line("note", format!("{count} {what}"));
            }
        }
        out
    }

    fn verdict(&self) -> String {
        let percent = f64::from(self.sample_per_million) / 10_000.0;
        let read = match self.sample_per_million {
            1_000_000 => "every object was read".to_owned(),
            _ => format!("a sample of {percent} % was read (seed {})", self.seed),
        };
        let (bad, others) = (self.findings.bad(), self.findings.total() - self.findings.bad());
        match (bad, others) {
            (0, 0) => format!("\nSOUND: {read}\n"),
            (0, n) => {
                format!("\nSOUND, BUT NOT WHOLE: {read}; {n} things are not held or could not be read\n")
            }
            (1, _) => format!("\nDAMAGED: {read}; 1 finding\n"),
            (n, _) => format!("\nDAMAGED: {read}; {n} findings\n"),
        }
    }
}

/// A text of any origin, so that a terminal shows it and obeys nothing in it.
#[must_use]
pub fn shown(text: &str) -> String {
    let escape = |c: char| -> String {
        match c {
            ' '..='~' => c.to_string(),
            c if c.is_alphanumeric() || "…“”–—".contains(c) => c.to_string(),
            c => c.escape_default().to_string(),
        }
    };
    let mut out: String = text.chars().take(SHOWN_CHARS_MAX).map(escape).collect();
    if text.chars().nth(SHOWN_CHARS_MAX).is_some() {
        out.push('…');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(fault: Fault, object: &str) -> Finding {
        Finding {
            fault,
            object: object.to_owned(),
            did: None,
            detail: "it is so".to_owned(),
            affects: String::new(),
        }
    }

    fn report(findings: Findings) -> Report {
        Report {
            archive: "file:///a".to_owned(),
            id: None,
            sample_per_million: 1_000_000,
            seed: 0,
            counts: Counts::default(),
            findings,
        }
    }

    #[test]
    fn the_worst_finding_decides() {
        let mut findings = Findings::default();
        assert_eq!(report(findings.clone()).exit_code(), 0);
        assert!(
            report(findings.clone())
                .text()
                .contains("SOUND: every object was read")
        );
        findings.add(finding(Fault::Gap, "v1/repos/x"));
        assert_eq!(report(findings.clone()).exit_code(), 3);
        findings.add(finding(Fault::Damaged, "v1/blocks/x"));
        assert_eq!(report(findings.clone()).exit_code(), 4);
        let text = report(findings).text();
        assert!(
            text.contains("damaged  v1/blocks/x") && text.contains("DAMAGED"),
            "{text}"
        );
    }

    #[test]
    fn findings_are_bounded_and_all_are_counted() {
        let mut findings = Findings::default();
        for _ in 0..FINDINGS_MAX + 5 {
            findings.add(finding(Fault::Damaged, "x"));
        }
        findings.count_more(Fault::MissingBlob, 7);
        let mut both = findings.clone();
        both.extend(findings);
        assert_eq!(both.kept().len(), FINDINGS_MAX);
        assert_eq!(both.bad(), 2 * (FINDINGS_MAX as u64 + 12));
        assert!(report(both).text().contains("and 10024 more"));
    }

    #[test]
    fn a_blob_that_no_host_gave_is_not_lost() {
        let blob = |bytes: &[u8]| format!("v1/blocks/did:web:a.b/{}", crate::types::Cid::of_blob(bytes));
        let mut findings = Findings::default();
        for (fault, object) in [
            (Fault::MissingBlob, blob(b"never given")),
            (Fault::MissingBlob, blob(b"lost")),
            (Fault::Damaged, blob(b"damaged")),
        ] {
            findings.add(finding(fault, &object));
        }
        let lost = blob(b"lost");
        let why = |name: &BlobName| Ok::<_, ()>((name.to_string() != lost).then_some("it is so"));
        assert_eq!(findings.explain_missing(why), Ok(()));
        let told: Vec<Fault> = findings.kept().iter().map(|found| found.fault).collect();
        assert_eq!(told, [Fault::NotGiven, Fault::MissingBlob, Fault::Damaged]);
        assert_eq!(findings.bad(), 2);
        assert_eq!(report(findings).exit_code(), 4);
        let mut findings = Findings::default();
        findings.add(finding(Fault::MissingBlob, &blob(b"never given")));
        assert_eq!(
            findings.explain_missing(|_| Ok::<_, ()>(Some("it is so"))),
            Ok(())
        );
        assert_eq!(report(findings).exit_code(), 3);
    }

    #[test]
    fn hostile_names_are_shown_harmlessly() {
        let name = format!("v1/\u{1b}[2J\n{}", "x".repeat(1000));
        let text = shown(&name);
        assert!(!text.contains(['\u{1b}', '\n']), "{text}");
        assert!(text.len() < 400);
    }
}
