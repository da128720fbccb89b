//! A PDS that was restored from an older copy of its own data: what it lost is not lost here.

use std::collections::BTreeMap;
use std::time::Instant;

use serde_json::Value;

use crate::support::firekeep::{Firekeep, Running, Status};
use crate::support::sandbox::{NOTES, Sandbox};
use crate::support::stream::Emitted;
use crate::support::{report, wait_for};

/// One side of what `firekeep diff` compares: how many paths are only here, only there, changed.
fn differences(side: &Value) -> (u64, u64, u64) {
    let count = |key: &str| side[key].as_u64().expect("a count");
    (count("only_here"), count("only_there"), count("changed"))
}

fn restart_with(sandbox: &Sandbox, data: impl FnOnce()) {
    sandbox.stop("pds1");
    data();
    sandbox.start("pds1");
}

fn epoch(status: &Status) -> u64 {
    status.host()["epoch"].as_u64().expect("a number")
}

/// Waits for alarms of a kind on exactly these accounts.
fn wait_alarms(running: &Running, kind: &str, subjects: &[String]) {
    let mut wanted = subjects.to_vec();
    wanted.sort();
    wait_for(&format!("{} alarms of kind {kind}", wanted.len()), || {
        let alarms = running.alarms().into_iter();
        let mut found: Vec<String> = alarms.filter(|(k, _)| k == kind).map(|(_, s)| s).collect();
        found.sort();
        if found == wanted { Ok(()) } else { Err(found) }
    });
}

/// What there was before the PDS forgot it.
struct Before {
    /// In this order: with additions, an edit, a deletion that are forgotten; and two of which nothing is.
    dids: Vec<String>,
    /// Accounts that are forgotten themselves.
    vanished: Vec<String>,
    /// A blob of the first.
    picture: String,
    status: Status,
    heads: BTreeMap<String, (String, String)>,
    /// The last event.
    highest: u64,
}

const ACCOUNTS: u64 = 5;
const VANISHED: u64 = 8;

impl Before {
    /// Makes accounts, has the PDS copied, and then adds what is going to be forgotten.
    fn make(sandbox: &Sandbox, firekeep: &Firekeep) -> (Self, Running) {
        sandbox.populate(ACCOUNTS, 100, 8);
        let dids = sandbox.dids();
        let [added, edited, emptied] = [0, 1, 2].map(|n| &dids[n]);
        sandbox.note(edited, "kept", "as it was");
        sandbox.note(emptied, "kept", "deleted, and back again after the rollback");
        let mut running = firekeep.start();
        running.wait_filled(ACCOUNTS);
        restart_with(sandbox, || sandbox.back_up_pds());
        running.wait_status("it is connected again", Status::connected);
        for n in 0..3 {
            sandbox.post(added, &format!("lost {n}"));
        }
        let picture = sandbox.post_picture(added);
        sandbox.note(edited, "kept", "as it was changed");
        sandbox.delete_note(emptied, "kept");
        sandbox.populate(VANISHED, 40, 4);
        let everyone = sandbox.dids();
        let status = running.wait_caught_up(sandbox);
        let heads = running.heads(&everyone);
        assert_eq!(heads.len(), everyone.len());
        let vanished = everyone.into_iter().filter(|did| !dids.contains(did)).collect();
        let before = Self {
            dids,
            vanished,
            picture,
            status,
            heads,
            highest: Emitted::read(sandbox).last(),
        };
        (before, running)
    }

    /// An alarm for each that is behind or gone, and for the host; and none besides.
    fn check_alarms(&self, running: &Running) {
        wait_alarms(running, "rollback", &self.dids[..3]);
        wait_alarms(running, "repo_not_found", &self.vanished);
        wait_alarms(running, "sequence_reset", &[String::new()]);
        wait_alarms(running, "empty_list", &[String::new()]);
        let alarms = running.alarms();
        assert_eq!(alarms.len() as u64, 3 + VANISHED + 2, "{alarms:?}");
        let said = running.alarm("sequence_reset", "");
        assert!(
            said.contains(&self.highest.to_string()),
            "the highest number is told: {said}"
        );
        let shown = running.setup.ask(&["alarms"]).stdout;
        assert!(shown.contains("OPEN"), "{shown}");
        for did in &self.dids[..3] {
            assert!(shown.contains(did), "{did} is named: {shown}");
        }
    }

    /// Nothing of ours is lost, all of it is still given, and the difference is listed.
    fn check_held(&self, running: &mut Running, rewound: u64) {
        let status = running.wait_status("the new numbering is followed", |status| {
            status.cursor() >= rewound && status.settled()
        });
        assert_eq!((epoch(&self.status), epoch(&status)), (0, 1));
        assert_eq!(status.host()["highest_seq"], self.highest, "{status:?}");
        let records = status.accounts("records");
        assert_eq!(records, self.status.accounts("records"), "{status:?}");
        let everyone: Vec<String> = self.heads.keys().cloned().collect();
        assert_eq!(running.heads(&everyone), self.heads);
        let blob = format!(
            "/xrpc/com.atproto.sync.getBlob?did={}&cid={}",
            self.dids[0], self.picture
        );
        assert_eq!(running.get(&blob).status, 200, "a picture that the PDS has lost");
        let lost = [(4, 0, 0), (0, 0, 1), (0, 1, 0), (0, 0, 0), (0, 0, 0)];
        for (did, lost) in self.dids.iter().zip(lost) {
            let (equal, told) = running.diff(did);
            assert_eq!(equal, lost == (0, 0, 0), "{told}");
            assert_eq!(differences(&told["compared"][0]), lost, "{told}");
            let sync = if equal { "live" } else { "diverged" };
            assert_eq!(running.account(did)["sync"], sync, "{did}");
        }
        let told = running.diff(&self.dids[2]).1;
        let paths = &told["compared"][0]["paths"];
        assert_eq!(paths["only_there"][0], format!("{NOTES}/kept"), "{told}");
    }

    /// The head is the PDS's again; what it lost is kept beside that, and nothing where it lost nothing.
    fn check_kept(&self, running: &Running) {
        let kept = [Some((4, 1, 0)), Some((0, 1, 1)), None, None, None];
        for (did, kept) in self.dids.iter().zip(kept) {
            let (equal, told) = running.diff(did);
            assert!(equal, "{told}");
            let beside = &told["compared"][1];
            assert_eq!((!beside.is_null()).then(|| differences(beside)), kept, "{told}");
            if kept.is_some() {
                assert_eq!(beside["rev"], self.heads[did].0.as_str(), "{told}");
            }
        }
    }
}

/// The host does not know our cursor any more, and says so: everything is compared, nothing is lost.
#[test]
fn rolled_back() {
    let began = Instant::now();
    let sandbox = Sandbox::up("pds,plc");
    let firekeep = Firekeep::new(&sandbox, "data");
    let (before, mut running) = Before::make(&sandbox, &firekeep);
    restart_with(&sandbox, || sandbox.restore_pds());
    let rewound = Emitted::read(&sandbox).last();
    assert!(
        rewound + 32 < before.highest,
        "by far: from {} to {rewound}",
        before.highest
    );
    before.check_alarms(&running);
    before.check_held(&mut running, rewound);

    // What the PDS does next is followed, and all of this outlives a restart.
    for did in &before.dids {
        let commit = sandbox.post(did, "after the rollback");
        running.wait_head(did, &commit);
    }
    running.stop();
    let mut running = firekeep.start();
    running.wait_caught_up(&sandbox);
    before.check_kept(&running);
    running.snapshot();
    let archive = firekeep.archive();
    let compared = sandbox.differences(&["--url", &firekeep.url(), "--archive", archive.to_str().unwrap()]);
    let only_ours = |what: &&String| *what == "the PDS does not give this account, the mirror does";
    let vanished = compared.iter().filter(only_ours).count() as u64;
    assert_eq!(
        (vanished, compared.len() as u64),
        (VANISHED, VANISHED),
        "all else is equal: {compared:?}"
    );
    let records = running.status().accounts("records");
    running.stop();
    let counts = format!(
        "from event {} back to {rewound}: 3 accounts behind, {VANISHED} vanished, 13 alarms, 4 additions, 1 change and 1 \
         deletion listed and kept, {ACCOUNTS} writes after it followed, {records} records held",
        before.highest
    );
    report("rolled_back", began, &counts);
}

/// The host says nothing: it still knows a number as low as the one that a connection begins with, or numbers what is
/// new as it had numbered what it has lost.
#[test]
fn rolled_back_silently() {
    let began = Instant::now();
    let sandbox = Sandbox::up("pds,plc");
    let accounts = 3;
    sandbox.populate(accounts, 60, 0);
    let dids = sandbox.dids();
    let [first, second, writer] = [0, 1, 2].map(|n| &dids[n]);
    let firekeep = Firekeep::new(&sandbox, "data");
    let mut running = firekeep.start();
    running.wait_filled(accounts);
    restart_with(&sandbox, || sandbox.back_up_pds());

    // One commit is lost, and nobody writes after it.
    let lost = sandbox.post(first, "lost");
    running.wait_head(first, &lost);
    running.wait_caught_up(&sandbox);
    restart_with(&sandbox, || sandbox.restore_pds());
    let restarted = Instant::now();
    wait_alarms(&running, "rollback", &dids[..1]);
    let seen_after = restarted.elapsed();
    wait_alarms(&running, "sequence_reset", &[String::new()]);
    assert_eq!(epoch(&running.status()), 1);
    assert_eq!(running.heads(&dids)[first].1, lost);

    // Again, seen by the admin before, and with other events under the numbers of those that are lost.
    for (kind, subject) in running.alarms() {
        let host = sandbox.pds_url().replace("http://", "");
        let ack = running
            .setup
            .ask(&["alarms", "ack", &kind, "--host", &host, "--subject", &subject]);
        assert_eq!(ack.code, 0, "{}", ack.stderr);
    }
    let lost = sandbox.post(second, "lost");
    running.wait_head(second, &lost);
    running.stop();
    restart_with(&sandbox, || sandbox.restore_pds());
    let mut commits = Vec::new();
    for n in 0..3 {
        commits.push(sandbox.post(writer, &format!("in its place {n}")));
    }
    let mut running = firekeep.start();
    wait_alarms(&running, "rollback", &dids[..2]);
    running.wait_head(writer, &commits[2]);
    let status = running.wait_status("all is settled", Status::settled);
    assert_eq!(epoch(&status), 2, "{status:?}");
    let shown = running.setup.ask(&["alarms"]);
    assert!(
        shown.stdout.contains("OPEN"),
        "what was seen is raised again: {}",
        shown.stdout
    );
    assert_eq!(running.heads(&dids)[second].1, lost);

    for did in [first, second] {
        let commit = sandbox.post(did, "after the rollback");
        running.wait_head(did, &commit);
        let (equal, told) = running.diff(did);
        assert!(equal, "{told}");
        assert_eq!(differences(&told["compared"][1]), (1, 1, 0), "{told}");
    }
    running.snapshot();
    let archive = firekeep.archive();
    let equal = sandbox.compare(&["--url", &firekeep.url(), "--archive", archive.to_str().unwrap()]);
    assert_eq!((equal.accounts, equal.snapshots), (accounts, accounts));
    running.stop();
    let counts = format!(
        "one event lost, seen {:.1} s after the restart; numbers used again, seen at the next connection; 2 lost records \
         kept, {}",
        seen_after.as_secs_f64(),
        equal.text()
    );
    report("rolled_back_silently", began, &counts);
}
