//! Streams and repositories made by others, through verification and the applier: what is held in the end.
//!
//! The suites lie in the folder that `FIREKEEP_CONFORMANCE` names, or in `../shared/conformance` beside the
//! project. Without it nothing runs, and a line a suite says so; with it every suite must be there. What
//! the session decides by sequence numbers alone is in `conformance_frames`.

mod conformance_sync {
    pub mod kit;
}

use std::collections::BTreeMap;
use std::sync::Arc;

use conformance_sync::kit::{
    Doc, NOW, Served, State, Taken, World, bytes, did, json, json_files, list, ran, suite, text, to_frame,
};
use firekeep::mirror::applier::Note;
use firekeep::mirror::rows::SyncState;
use firekeep::mirror::store::Family;
use firekeep::repo::car::parse_car;
use firekeep::repo::commit::Commit;
use firekeep::repo::proof::{ProofError, RecordOp, invert};
use firekeep::repo::signing_key::{Curve, SecretKey, SigningKey};
use firekeep::stream::frame::{Frame, decode_frame};
use firekeep::types::{Cid, Did, Digest};
use firekeep::verify::{Checked, CommitProof, EventBody, FrameContent, KeyLookup, RejectReason, check_frame};
use serde_json::Value;

/// When the work that the applier left is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pace {
    /// After every frame.
    AtOnce,
    /// After the last one: frames are parked meanwhile.
    Late,
}

/// The words of the suite that fit what became of a frame, the work that it led to included.
fn outcomes(taken: &Taken, later: &[Note], refreshed: bool) -> Vec<&'static str> {
    let Taken::Notes(notes) = taken else {
        return match taken {
            Taken::DropConnection => vec!["drop_conn"],
            Taken::Closed => vec!["close"],
            _ => vec!["ignore"],
        };
    };
    let mut words = Vec::new();
    let mut parked = false;
    for note in notes.iter().chain(later) {
        match note {
            Note::Applied { .. } => words.push("apply"),
            Note::Rejected { .. } => words.push("reject"),
            Note::Desynchronized { .. } => words.push("desync"),
            Note::Status { .. } => words.push("status"),
            Note::Gap { .. } => words.push("gap"),
            Note::Replayed { .. } | Note::Inactive { .. } => words.push("ignore"),
            Note::Parked { .. } => parked = true,
            Note::Swapped { .. } if parked => words.push("desync"),
            _ => {}
        }
    }
    if refreshed {
        words.push("refresh");
    }
    if words.is_empty() {
        words.push("ignore");
    }
    words
}

fn allowed(vector: &Value) -> Vec<&str> {
    let mut words = vec![text(vector, "expect")];
    words.extend(list(vector, "also_ok").iter().filter_map(Value::as_str));
    if vector["lenient_ok"].as_bool() == Some(true) {
        words.push("apply");
    }
    words
}

/// The base of a frame vector, and its extra accounts.
fn vector_world(suite: &Value, vector: &Value) -> World {
    let mut world = World::new(text(suite, "host"));
    for account in list(suite, "accounts")
        .iter()
        .chain(list(vector, "extra_accounts"))
    {
        world
            .docs
            .insert(did(text(account, "did")), Doc::of_account(account));
    }
    let base = suite["base"].as_object().expect("accounts");
    let dids: Vec<Did> = base.keys().map(|key| did(key)).collect();
    for (key, state) in base {
        world.repos.insert(did(key), Served::Car(bytes(state, "car_b64")));
    }
    world.begin(&dids, suite["cursor"].as_u64().expect("a number"));
    for (key, state) in base {
        assert_eq!(world.state(&did(key)), Some(State::of_json(state)));
    }
    let subject = did(text(suite, "subject"));
    let served = if vector["resync_car_b64"].is_string() {
        bytes(vector, "resync_car_b64")
    } else {
        bytes(&suite["truth"], "car_b64")
    };
    world.repos.insert(subject.clone(), Served::Car(served));
    if let Some(other) = vector["after_did"].as_str().map(did)
        && other != subject
    {
        world
            .repos
            .insert(other, Served::Car(bytes(vector, "after_car_b64")));
    }
    world
}

/// The state after a vector that is applied. In a few vectors the commit's CID is from before the commit was
/// signed again (the suites' "Known flaw"): the frame has the right one.
fn after(vector: &Value) -> State {
    let mut state = State::of_json(&vector["after"]);
    let resigned = [
        "commit-extra-field",
        "commit-no-prev",
        "commit-prev-set",
        "commit-prev-raw-cid",
        "commit-version-2",
    ];
    if resigned.contains(&text(vector, "id")) {
        let frame = bytes(vector, "frame_b64");
        let Ok(firekeep::stream::frame::Frame::Commit(frame)) = firekeep::stream::frame::decode_frame(&frame)
        else {
            panic!("a commit");
        };
        state.commit = frame.commit.to_string();
    }
    state
}

fn run_vector(suite: &Value, vector: &Value, pace: Pace) {
    let id = text(vector, "id");
    let subject = did(text(suite, "subject"));
    let mut world = vector_world(suite, vector);
    let frame = bytes(vector, "frame_b64");
    let taken = world.frame(&frame);
    // What follows from the frame alone; a fetch is not yet answered.
    let served = std::mem::take(&mut world.repos);
    let mut later = Vec::new();
    if pace == Pace::AtOnce || text(vector, "expect") == "apply" {
        world.repos = served.clone();
        later = world.work();
    }
    let mut words = outcomes(&taken, &later, world.refreshes > 0);
    if let Some(status) = vector["status"].as_str() {
        let row = world.row(&subject).expect("known");
        assert_eq!(row.upstream.label(), status, "{id}");
        words.push("status");
    }
    world.repos = served;
    let allowed = allowed(vector);
    let fits = words.iter().any(|word| allowed.contains(word));
    assert!(
        fits || pace == Pace::Late,
        "{id}: {words:?}, not {allowed:?}: {taken:?} {later:?}"
    );
    if words.contains(&"apply") {
        assert!(allowed.contains(&"apply"), "{id} was applied");
    }
    match id {
        // Ours is the consumer that holds the whole tree.
        "chain-prevdata-absent" => assert!(words.contains(&"apply"), "{id}: {words:?}"),
        "sig-other-key" | "sig-bitflip" if pace == Pace::AtOnce => assert_eq!(world.refreshes, 1, "{id}"),
        _ => {}
    }

    let after_did = vector["after_did"].as_str().map_or_else(|| subject.clone(), did);
    if words.contains(&"apply") || (vector["after"].is_object() && after_did != subject) {
        world.settle();
        assert_eq!(world.state(&after_did), Some(after(vector)), "{id}");
    } else {
        world.frame(&bytes(suite, "then_b64"));
        world.settle();
        let inactive = vector["status"].as_str().is_some_and(|status| status != "active");
        let expected = if inactive {
            State::of_json(&suite["base"][subject.as_str()])
        } else if vector["after"].is_object() && vector["resync_car_b64"].is_string() {
            State::of_json(&vector["after"])
        } else {
            State::of_json(&suite["truth"])
        };
        assert_eq!(world.state(&subject), Some(expected), "{id} {pace:?}");
        if id == "sync-bad-sig" {
            assert_eq!(world.fetches, 0, "a foreign signature must not make us fetch");
        }
    }
    for (key, state) in suite["base"].as_object().expect("accounts") {
        if did(key) != subject {
            assert_eq!(
                world.state(&did(key)),
                Some(State::of_json(state)),
                "{id} changed {key}"
            );
            let row = world.row(&did(key)).expect("known");
            assert_eq!(row.sync, SyncState::Live, "{id}");
        }
    }
}

#[test]
fn synthetic_frames() {
    let Some(path) = suite("synthetic/frames/vectors-a.json") else {
        return;
    };
    let suite = json(&path);
    let vectors = list(&suite, "vectors");
    let mut failed = Vec::new();
    for vector in vectors {
        for pace in [Pace::AtOnce, Pace::Late] {
            let run = std::panic::catch_unwind(|| run_vector(&suite, vector, pace));
            if run.is_err() {
                failed.push((text(vector, "id"), pace));
            }
        }
    }
    assert!(failed.is_empty(), "{failed:?}");
    ran("synthetic/frames (state)", vectors.len(), 82);
}

/// A scenario with its world: accounts at their start, documents as they become.
struct Play<'a> {
    scenario: &'a Value,
    frames: Vec<Vec<u8>>,
    world: World,
    dids: Vec<Did>,
    pace: Pace,
}

impl<'a> Play<'a> {
    fn new(scenario: &'a Value, pace: Pace) -> Self {
        let mut world = World::new(text(scenario, "host"));
        for account in list(scenario, "accounts") {
            world
                .docs
                .insert(did(text(account, "did")), Doc::of_account(account));
        }
        let start = scenario["start"].as_object().expect("accounts");
        let dids: Vec<Did> = start.keys().map(|key| did(key)).collect();
        for (key, state) in start {
            world.repos.insert(did(key), Served::Car(bytes(state, "car_b64")));
        }
        world.begin(&dids, scenario["cursor"].as_u64().expect("a number"));
        for (key, state) in start {
            let held = world.state(&did(key)).expect("loaded");
            assert_eq!(held.commit, text(state, "commit"));
        }
        for did in &dids {
            // Without a word on it the host serves the state that its stream has come to.
            let ends = pace == Pace::Late || scenario["resync"][did.as_str()].as_str() == Some("end");
            let served = if ends {
                Served::Car(bytes(&scenario["end"][did.as_str()], "car_b64"))
            } else {
                Served::OurHead
            };
            world.repos.insert(did.clone(), served);
        }
        Self {
            scenario,
            frames: list(scenario, "frames")
                .iter()
                .map(|frame| bytes(frame, "b64"))
                .collect(),
            world,
            dids,
            pace,
        }
    }

    /// Delivers frame `number`, and does the work that follows from it if it is time.
    fn frame(&mut self, number: usize) -> Vec<Note> {
        let mut notes = self.deliver(number);
        if self.pace == Pace::AtOnce {
            notes.extend(self.world.work());
        }
        notes
    }

    /// Delivers frame `number`, with the documents that the directory serves by then.
    fn deliver(&mut self, number: usize) -> Vec<Note> {
        for (at, index) in self.scenario["did_doc_switch"].as_object().into_iter().flatten() {
            if at.parse::<usize>().is_ok_and(|at| at <= number) {
                let index = usize::try_from(index.as_u64().expect("a number")).expect("small");
                let document = &list(self.scenario, "did_docs")[index];
                let account = did(text(document, "id"));
                self.world.docs.insert(account, Doc::of_document(document));
            }
        }
        match self.world.frame(&self.frames[number]) {
            Taken::Notes(notes) => notes,
            other => panic!("frame {number} is an event, not {other:?}"),
        }
    }

    /// Delivers again what a host sends from the stored cursor on, and some before it.
    fn reconnect(&mut self, number: usize) {
        let oldest = number.saturating_sub(2);
        let first = decode_frame(&self.frames[oldest]).expect("a frame").seq();
        self.world.dial(first.map(|seq| seq - 1));
        for again in oldest..=number {
            let notes = self.deliver(again);
            assert!(
                notes.iter().all(|note| matches!(note, Note::Replayed { .. })),
                "frame {again} again: {notes:?}"
            );
        }
        if self.pace == Pace::AtOnce {
            self.world.work();
        }
    }

    fn check_frame_expectation(&self, number: usize, notes: &[Note]) {
        let frame = &list(self.scenario, "frames")[number];
        let expect = text(frame, "expect");
        let name = text(self.scenario, "name");
        let applied = notes.iter().any(|note| matches!(note, Note::Applied { .. }));
        let is = |wanted: fn(&Note) -> bool| notes.iter().any(wanted);
        match expect {
            "apply" => {
                assert!(applied, "{name} {number}: {notes:?}");
                let state = self.world.state(&self.dids[0]).expect("loaded");
                if let (Some(rev), Some(data)) = (frame["rev"].as_str(), frame["data"].as_str()) {
                    assert_eq!((state.rev.as_str(), state.data.as_str()), (rev, data), "{number}");
                }
            }
            "reject" => assert!(!applied && is(|note| matches!(note, Note::Rejected { .. }))),
            "status" => assert!(is(|note| matches!(note, Note::Status { .. })), "{number}"),
            "desync" => assert!(!applied, "{name} {number}: {notes:?}"),
            "refresh" => assert!(self.world.refreshes > 0, "{number}"),
            "ignore" | "queue_or_ignore" => assert!(!applied, "{number}: {notes:?}"),
            "apply_after_resync" => {}
            other => panic!("{other} is not a word of the suite"),
        }
    }

    fn check_end(&mut self) {
        self.world.settle();
        for (key, state) in self.scenario["end"].as_object().expect("accounts") {
            let did = did(key);
            let held = self.world.state(&did);
            let row = self.world.row(&did).expect("known");
            if self.pace == Pace::Late && !row.upstream.is_active() {
                // It was gone before it could be fetched: what was held stays.
                assert!(held.is_some_and(|held| held.records > 0), "{key}");
                continue;
            }
            assert_eq!(held, Some(State::of_json(state)), "{key}");
            if row.upstream.is_active() {
                assert_eq!((row.sync, row.parked), (SyncState::Live, 0));
            }
        }
    }
}

/// From the first frame to the last, each as the scenario says.
fn play(scenario: &Value, pace: Pace) {
    let mut play = Play::new(scenario, pace);
    for number in 0..play.frames.len() {
        let notes = play.frame(number);
        if pace == Pace::AtOnce {
            play.check_frame_expectation(number, &notes);
        }
    }
    play.check_end();
}

/// The process dies behind every frame; the host repeats from the stored cursor.
fn play_with_crashes(scenario: &Value, pace: Pace) {
    let mut play = Play::new(scenario, pace);
    for number in 0..play.frames.len() {
        play.frame(number);
        play.world.crash();
        play.reconnect(number);
    }
    play.check_end();
}

/// The process dies once, behind frame `at`: its work is not yet done, or it has loaded what it will not swap.
fn play_with_one_crash(scenario: &Value, pace: Pace, at: usize) {
    let mut play = Play::new(scenario, pace);
    for number in 0..play.frames.len() {
        if number != at {
            play.frame(number);
            continue;
        }
        play.pace = Pace::Late;
        play.frame(number);
        play.world.load_and_forget();
        play.world.crash();
        play.pace = pace;
        play.reconnect(number);
    }
    play.check_end();
}

#[test]
fn synthetic_scenarios() {
    let Some(folder) = suite("synthetic/scenarios") else {
        return;
    };
    let scenarios = json_files(&folder);
    let (mut frames, mut crashes) = (0, 0);
    for (name, scenario) in &scenarios {
        let count = list(scenario, "frames").len();
        for pace in [Pace::AtOnce, Pace::Late] {
            println!("{name}, {pace:?}");
            play(scenario, pace);
            play_with_crashes(scenario, pace);
            crashes += count;
            for at in 0..count {
                // Of the long chain every fifth place will do: what differs lies in the short ones.
                if count < 60 || at % 5 == 0 {
                    play_with_one_crash(scenario, pace, at);
                    crashes += 1;
                }
            }
        }
        frames += count;
    }
    println!("conformance: synthetic/scenarios (state): {crashes} crashes");
    ran("synthetic/scenarios (state)", scenarios.len(), 5);
    assert_eq!((frames, crashes > 600), (212, true));
}

/// What is held of an account from before, and must stay when what is fetched later is refused.
fn earlier_backup(world: &mut World, vector: &Value, vectors: &[Value]) -> Option<State> {
    let account = did(text(vector, "did"));
    let good = vectors
        .iter()
        .find(|good| text(good, "id") == "car-ok-preorder" && text(good, "did") == account.as_str())?;
    world
        .repos
        .insert(account.clone(), Served::Car(bytes(good, "car_b64")));
    world.begin(std::slice::from_ref(&account), 1);
    let state = world.state(&account);
    assert_eq!(state, Some(State::of_json(&good["state"])));
    // Its rows are damaged, say: so it is fetched again although the head is the host's.
    world.damaged(&account);
    state
}

#[test]
fn synthetic_repo_cars() {
    let Some(path) = suite("synthetic/repo-car/vectors-a.json") else {
        return;
    };
    let suite = json(&path);
    let vectors = list(&suite, "vectors");
    let mut refused = 0;
    for vector in vectors {
        let (id, account) = (text(vector, "id"), did(text(vector, "did")));
        let new_world = || {
            let mut world = World::new("pds.test");
            let key = text(vector, "signing_key");
            let pds = "https://pds.test";
            let doc = Doc::of_account(&serde_json::json!({"signing_key": key, "pds": pds}));
            world.docs.insert(account.clone(), doc);
            world
        };
        let mut world = new_world();
        world
            .repos
            .insert(account.clone(), Served::Car(bytes(vector, "car_b64")));
        world.begin(std::slice::from_ref(&account), 1);
        let held = world.state(&account);
        if held.is_some() {
            assert!(allowed(vector).contains(&"accept"), "{id} was accepted");
            assert_eq!(held, Some(State::of_json(&vector["state"])), "{id}");
            continue;
        }
        refused += 1;
        assert!(allowed(vector).contains(&"reject"), "{id} was refused");
        for family in [Family::Records, Family::BlobRefs, Family::Journal, Family::Blobs] {
            assert_eq!(
                world.rows_of(family),
                0,
                "{id}: something of it stayed in {family:?}"
            );
        }
        let mut world = new_world();
        if let Some(before) = earlier_backup(&mut world, vector, vectors) {
            let records = world.rows_of(Family::Records);
            world
                .repos
                .insert(account.clone(), Served::Car(bytes(vector, "car_b64")));
            let notes = world.work();
            assert!(matches!(notes[..], [Note::FetchFailed { .. }]), "{id}: {notes:?}");
            assert_eq!(world.state(&account), Some(before), "{id}");
            assert_eq!(world.rows_of(Family::Records), records, "{id}");
        }
    }
    ran("synthetic/repo-car", vectors.len(), 49);
    assert!(refused >= 35, "{refused}");
}

/// A message of a relay scenario as a frame.
fn relay_frame(message: &Value) -> (Vec<u8>, u64) {
    let (header, body) = (&message["frame"]["header"], &message["frame"]["body"]);
    (to_frame(header, body), body["seq"].as_u64().expect("a number"))
}

fn relay_world(scenario: &Value) -> (World, Did) {
    let identity = &list(scenario, "accounts")[0]["identity"];
    let url = text(&identity["services"]["atproto_pds"], "url");
    let mut world = World::new(url.trim_start_matches("https://"));
    let key = text(&identity["keys"]["atproto"], "publicKeyMultibase");
    let account = did(text(identity, "did"));
    let doc = Doc {
        key: SigningKey::from_multikey(key).expect("a key"),
        host: url.trim_start_matches("https://").to_owned(),
    };
    world.docs.insert(account.clone(), doc);
    (world, account)
}

/// Verifies a frame with a key, as if the account's row had it.
fn check(frame: &[u8], key: &SigningKey) -> EventBody {
    let lookup = |_: &Did| KeyLookup::Key(Arc::new(key.clone()));
    match check_frame(frame, lookup, NOW) {
        Ok(FrameContent::Event(event)) => event.body,
        other => panic!("an event, not {other:?}"),
    }
}

#[test]
fn indigo_relay_scenarios() {
    let Some(folder) = suite("indigo/relay-scenarios") else {
        return;
    };
    let (mut cases, mut chained) = (0, 0);
    for (name, scenario) in json_files(&folder) {
        let (mut world, account) = relay_world(&scenario);
        world.dial(None);
        let key = world.docs[&account].key.clone();
        let other = SecretKey::from_bytes(Curve::K256, &[7; 32])
            .expect("a key")
            .public();
        let mut data: Option<Cid> = None;
        for message in list(&scenario, "messages") {
            let (frame, seq) = relay_frame(message);
            cases += 1;
            let dropped = match world.frame(&frame) {
                Taken::DropConnection => true,
                Taken::Notes(notes) => matches!(notes[..], [Note::Replayed { .. }]),
                other => panic!("{name} {seq} is an event, not {other:?}"),
            };
            assert_eq!(
                dropped,
                message["drop"].as_bool().expect("a flag"),
                "{name} {seq}"
            );
            assert!(dropped || world.cursor() == Some(seq), "{name} {seq}");
            match check(&frame, &key) {
                EventBody::Commit { checked, .. } => {
                    match checked {
                        Checked::Verified(CommitProof::Inverted(commit)) => {
                            assert!(data.is_none_or(|data| data == commit.prev_data()), "{name} {seq}");
                            data = Some(commit.data());
                            chained += 1;
                        }
                        Checked::Verified(CommitProof::Legacy(_)) => {
                            assert_eq!(scenario["lenient"], true, "{name} {seq}");
                        }
                        other => panic!("{name} {seq}: {other:?}"),
                    }
                    check_refused(&frame, &other);
                }
                EventBody::Sync { checked, .. } => {
                    assert!(matches!(checked, Checked::Verified(_)), "{name} {seq}");
                    check_refused(&frame, &other);
                }
                EventBody::Identity { did } | EventBody::Account { did, .. } => assert_eq!(did, account),
                EventBody::Malformed { .. } => panic!("{name} {seq} is malformed"),
            }
        }
        // The host does not serve the repository, so nothing may have become visible.
        world.settle();
        assert_eq!(world.state(&account), None);
        let row = world.row(&account).expect("known");
        assert_eq!(row.upstream.is_active(), name != "account_lifecycle");
    }
    assert_eq!(chained, 6, "post_lifecycle is one chain");
    ran("indigo/relay-scenarios (applier)", cases, 17);
}

/// With another key than the account's, nothing is proven.
fn check_refused(frame: &[u8], other: &SigningKey) {
    let refused = match check(frame, other) {
        EventBody::Commit { checked, .. } => {
            matches!(checked, Checked::Rejected(RejectReason::BadSignature))
        }
        EventBody::Sync { checked, .. } => {
            matches!(checked, Checked::Rejected(RejectReason::BadSignature))
        }
        _ => false,
    };
    assert!(refused, "another key must not do");
}

#[test]
fn indigo_firehose_commits() {
    let Some(folder) = suite("indigo/firehose-commits") else {
        return;
    };
    let header = serde_json::json!({"op": 1, "t": "#commit"});
    let commits = json_files(&folder);
    for (name, body) in &commits {
        let frame = to_frame(&header, body);
        // No key came with them: of their proofs only the trees can be looked at.
        let other = SecretKey::from_bytes(Curve::P256, &[7; 32])
            .expect("a key")
            .public();
        check_refused(&frame, &other);
        let Ok(Frame::Commit(commit)) = decode_frame(&frame) else {
            panic!("{name} is a commit");
        };
        let car = parse_car(commit.blocks).expect("a CAR");
        assert_eq!(car.roots, [commit.commit]);
        let blocks: BTreeMap<Digest, &[u8]> = car
            .blocks
            .iter()
            .map(|(cid, bytes)| (*cid.digest(), *bytes))
            .collect();
        let signed = Commit::decode(blocks[commit.commit.digest()]).expect("a commit");
        assert_eq!((&signed.did, signed.rev), (&commit.did, commit.rev));
        let ops: Vec<RecordOp<'_>> = commit
            .ops
            .iter()
            .map(|op| RecordOp {
                path: op.path.as_bytes(),
                cid: op.cid,
                prev: op.prev,
            })
            .collect();
        let undone = invert(&blocks, signed.data, &ops);
        match name.as_str() {
            "firehose_commit_4623075231" => assert_eq!(
                undone.expect("it inverts").to_string(),
                "bafyreicfeeojgjj7gtgl6go25tk5jmcuoytjp5hhulbdd7gwzk7gtqw3ka"
            ),
            "firehose_commit_4621317030" => {
                assert!(matches!(undone, Err(ProofError::Incomplete(_))), "{undone:?}");
            }
            other => panic!("{other} is not known here"),
        }
    }
    ran("indigo/firehose-commits (proofs)", commits.len(), 2);
}
