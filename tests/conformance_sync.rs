//! Streams and repositories made by others, through verification and the applier: what is held in the end.
//!
//! The suites lie in the folder that `FIREKEEP_CONFORMANCE` names, or in `../shared/conformance` beside the
//! project. Without it nothing runs, and a line a suite says so; with it every suite must be there. What
//! the session decides by sequence numbers alone is in `conformance_frames`.

mod conformance_sync {
    pub mod kit;
}

use conformance_sync::kit::{
    Doc, Served, State, Taken, World, bytes, did, json, json_files, list, ran, suite, text,
};
use firekeep::mirror::applier::Note;
use firekeep::mirror::rows::SyncState;
use firekeep::mirror::store::Family;
use firekeep::types::Did;
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
