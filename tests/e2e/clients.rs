//! What the tools that people come with send, and what they get: from the real PDS and from Firekeep, in one run.
//!
//! A row is a request and how the two answers go together. Where they do not, the row says in which way, and
//! `docs/clients.md` why.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read as _;
use std::time::Instant;

use firekeep::repo::car::parse_car;
use firekeep::repo::signing_key::SigningKey;
use serde_json::{Value, json};

use crate::support::firekeep::Firekeep;
use crate::support::http::{self, Answer};
use crate::support::sandbox::Sandbox;
use crate::support::{report, wait_for};

/// How the two answers go together.
#[derive(Debug, Clone, Copy)]
enum Fit {
    /// The same JSON.
    Json,
    /// The same, but these fields.
    JsonBut(&'static [&'static str]),
    /// A list with the same entries, in any order; the cursor may differ.
    Entries(&'static str),
    /// CARs with the same roots and blocks.
    Car,
    /// Ours has all blocks of theirs, and perhaps more.
    CarWithMore,
    /// The same of a list of texts.
    ListWithMore(&'static str),
    /// The same bytes, media type, length and security headers.
    Blob,
    /// The same status, name and text of an error.
    Error,
    /// The same status and text; ours has the lexicon's name.
    ErrorNamed(&'static str),
    /// The same status and name; other words.
    ErrorWorded,
    /// The same status.
    Status,
    /// Theirs has this status, ours the other.
    Differs(u16, u16),
    /// CORS: the same origin and headers are allowed.
    Preflight,
}

struct Row {
    tool: &'static str,
    method: &'static str,
    path: String,
    headers: &'static str,
    fit: Fit,
}

fn get(tool: &'static str, path: impl Into<String>, fit: Fit) -> Row {
    Row {
        tool,
        method: "GET",
        path: format!("/xrpc/{}", path.into()),
        headers: "",
        fit,
    }
}

impl Row {
    fn with(mut self, method: &'static str, headers: &'static str) -> Self {
        (self.method, self.headers) = (method, headers);
        self
    }

    fn judge(&self, pds: &str, ours: &str) -> Result<(), String> {
        let ask = |base| http::ask(self.method, base, &self.path, self.headers).expect("answers");
        let (theirs, ours) = (ask(pds), ask(ours));
        fits(self.fit, &theirs, &ours)
            .and_then(|()| promised(&ours))
            .map_err(|wrong| {
                format!(
                    "{}: {} {}\n    {:?}: {wrong}\n    theirs {} {}\n    ours   {} {}",
                    self.tool,
                    self.method,
                    self.path,
                    self.fit,
                    theirs.status,
                    shown(&theirs),
                    ours.status,
                    shown(&ours)
                )
            })
    }
}

fn shown(answer: &Answer) -> String {
    String::from_utf8_lossy(&answer.body).chars().take(400).collect()
}

/// The body without its coding.
fn plain(answer: &Answer) -> Vec<u8> {
    if answer.header("content-encoding") != Some("gzip") {
        return answer.body.clone();
    }
    let mut plain = Vec::new();
    flate2::read::GzDecoder::new(&answer.body[..])
        .read_to_end(&mut plain)
        .expect("gzip");
    plain
}

fn value(answer: &Answer) -> Value {
    serde_json::from_slice(&plain(answer)).unwrap_or(Value::Null)
}

/// Roots, and blocks by CID.
type Car = (Vec<String>, BTreeMap<String, Vec<u8>>);

fn blocks(answer: &Answer) -> Result<Car, String> {
    let body = plain(answer);
    let car = parse_car(&body).map_err(|error| format!("no CAR: {error}"))?;
    let roots = car.roots.iter().map(ToString::to_string).collect();
    let blocks = car
        .blocks
        .iter()
        .map(|(cid, bytes)| (cid.to_string(), bytes.to_vec()));
    Ok((roots, blocks.collect()))
}

fn same<T: PartialEq + std::fmt::Debug>(what: &str, theirs: &T, ours: &T) -> Result<(), String> {
    if theirs == ours {
        return Ok(());
    }
    Err(format!("{what} differs: {theirs:?} and {ours:?}"))
}

fn same_header(name: &str, theirs: &Answer, ours: &Answer) -> Result<(), String> {
    same(name, &theirs.header(name), &ours.header(name))
}

fn fits(fit: Fit, theirs: &Answer, ours: &Answer) -> Result<(), String> {
    if let Fit::Differs(status, other) = fit {
        return same("status", &(theirs.status, ours.status), &(status, other));
    }
    same("status", &theirs.status, &ours.status)?;
    let without = |answer: &Answer, names: &[&str]| {
        let mut value = value(answer);
        for name in names {
            value.as_object_mut().map(|fields| fields.remove(*name));
        }
        value
    };
    match fit {
        Fit::Json => same("JSON", &value(theirs), &value(ours)),
        Fit::JsonBut(names) => same("JSON", &without(theirs, names), &without(ours, names)),
        Fit::Entries(list) => {
            let entries = |answer: &Answer| {
                let value = value(answer);
                let entries = value[list].as_array().cloned().unwrap_or_default();
                entries.iter().map(ToString::to_string).collect::<BTreeSet<_>>()
            };
            if entries(theirs).is_empty() {
                return Err("nothing is listed, so nothing is compared".to_owned());
            }
            same(list, &entries(theirs), &entries(ours))
        }
        Fit::ListWithMore(list) => {
            let (theirs, ours) = (value(theirs), value(ours));
            let has = |text: &Value| ours[list].as_array().is_some_and(|ours| ours.contains(text));
            match theirs[list].as_array() {
                Some(theirs) if !theirs.is_empty() && theirs.iter().all(has) => Ok(()),
                theirs => Err(format!("ours lacks some of {theirs:?}")),
            }
        }
        Fit::Car | Fit::CarWithMore => {
            same_header("content-type", theirs, ours)?;
            let ((their_roots, theirs), (our_roots, ours)) = (blocks(theirs)?, blocks(ours)?);
            same("roots", &their_roots, &our_roots)?;
            let missing: Vec<_> = theirs.keys().filter(|cid| !ours.contains_key(*cid)).collect();
            let more: Vec<_> = ours.keys().filter(|cid| !theirs.contains_key(*cid)).collect();
            if !missing.is_empty() || (matches!(fit, Fit::Car) && !more.is_empty()) {
                return Err(format!(
                    "of {} blocks ours lacks {missing:?}, and has more: {more:?}",
                    theirs.len()
                ));
            }
            Ok(())
        }
        Fit::Blob => {
            for name in [
                "content-type",
                "content-length",
                "content-disposition",
                "content-security-policy",
                "x-content-type-options",
            ] {
                same_header(name, theirs, ours)?;
            }
            same("body", &theirs.body, &ours.body)
        }
        Fit::Error => same("error", &value(theirs), &value(ours)),
        Fit::ErrorNamed(name) => {
            same("message", &value(theirs)["message"], &value(ours)["message"])?;
            same("name", &json!(name), &value(ours)["error"])
        }
        Fit::ErrorWorded => same("name", &value(theirs)["error"], &value(ours)["error"]),
        Fit::Preflight => {
            same_header("access-control-allow-origin", theirs, ours)?;
            same_header("access-control-max-age", theirs, ours)?;
            same_header("access-control-allow-headers", theirs, ours)
        }
        Fit::Status | Fit::Differs(..) => Ok(()),
    }
}

/// What holds of every answer of ours.
fn promised(ours: &Answer) -> Result<(), String> {
    let cached = ours.header("cache-control").unwrap_or_default().to_owned();
    if !cached.starts_with("private, no-") || cached.contains("immutable") {
        return Err(format!("cache-control is {cached:?}"));
    }
    if ours.header("access-control-allow-origin") != Some("*") {
        return Err("it is not for every origin".to_owned());
    }
    if ours.status >= 400 && (value(ours)["error"].is_null() || value(ours)["message"].is_null()) {
        return Err("an error is not {error, message}".to_owned());
    }
    let length = ours
        .header("content-length")
        .and_then(|length| length.parse().ok());
    match ours.header("content-encoding") {
        Some("gzip") | None => {}
        other => return Err(format!("content-encoding is {other:?}")),
    }
    if ours.header("content-encoding").is_none() && !ours.body.is_empty() && length != Some(ours.body.len()) {
        return Err(format!("content-length is {length:?} of {}", ours.body.len()));
    }
    Ok(())
}

/// Judges all rows, and tells of all that do not fit.
fn judge(rows: &[Row], pds: &str, ours: &str) -> usize {
    let wrong: Vec<String> = rows.iter().filter_map(|row| row.judge(pds, ours).err()).collect();
    assert!(
        wrong.is_empty(),
        "{} of {} rows:\n{}",
        wrong.len(),
        rows.len(),
        wrong.join("\n")
    );
    rows.len()
}

/// What the rows are about.
struct World {
    did: String,
    other: String,
    handle: String,
    blob: String,
    rkey: String,
    record: String,
    /// Revs: of before the repository was fetched, of before the last posts, and the newest.
    first: String,
    earlier: String,
    newest: String,
    commit: String,
    data: String,
}

const POSTS: &str = "app.bsky.feed.post";

fn open_rows(world: &World) -> Vec<Row> {
    use Fit::{
        Blob, Car, CarWithMore, Differs, Entries, Error, ErrorNamed, ErrorWorded, Json, JsonBut,
        ListWithMore, Preflight, Status,
    };
    let World {
        did,
        other,
        handle,
        blob,
        rkey,
        record,
        first,
        earlier,
        newest,
        commit,
        data,
    } = world;
    let absent_block = "bafyreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku";
    let absent_blob = "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku";
    let stranger = "did:plc:aaaaaaaaaaaaaaaaaaaaaaaa";
    vec![
        get("goat repo export", format!("com.atproto.sync.getRepo?did={did}"), Car).with("GET", "accept-encoding: gzip\r\n"),
        get("Tektite", format!("com.atproto.sync.getRepo?did={did}"), Car),
        get("Tektite", format!("com.atproto.sync.getRepo?did={did}&since={earlier}"), CarWithMore),
        get("Tektite", format!("com.atproto.sync.getRepo?did={did}&since={newest}"), Car),
        get("Tektite", format!("com.atproto.sync.getRepo?did={did}"), Status).with("HEAD", ""),
        get("Tektite", format!("com.atproto.sync.getRepo?did={did}"), Preflight)
            .with("OPTIONS", "origin: https://tektite.cc\r\naccess-control-request-method: GET\r\naccess-control-request-headers: authorization,x-any\r\n"),
        get("goat migrate", format!("com.atproto.sync.getRepo?did={did}"), Differs(400, 200)).with("GET", "authorization: Bearer of.another.pds\r\n"),
        get("goat blob export", format!("com.atproto.sync.listBlobs?did={did}&limit=500"), JsonBut(&["cursor"])),
        get("goat blob export", format!("com.atproto.sync.listBlobs?did={did}&limit=1"), Json),
        get("PDS MOover migrate", format!("com.atproto.sync.listBlobs?did={did}&limit=100"), JsonBut(&["cursor"])),
        get("boat", format!("com.atproto.sync.listBlobs?did={did}&limit=1000"), JsonBut(&["cursor"])),
        get("listBlobs since", format!("com.atproto.sync.listBlobs?did={did}&since={first}"), ListWithMore("cids")),
        get("listBlobs since", format!("com.atproto.sync.listBlobs?did={did}&since={earlier}"), JsonBut(&["cursor"])),
        get("listBlobs since", format!("com.atproto.sync.listBlobs?did={did}&since={newest}"), JsonBut(&["cursor"])),
        get("PDS MOover restore", format!("com.atproto.sync.getBlob?did={did}&cid={blob}"), Blob),
        get("pdsls", format!("com.atproto.sync.getBlob?did={did}&cid={blob}"), Blob).with("HEAD", ""),
        get("boat", format!("com.atproto.sync.getBlob?did={did}&cid={absent_blob}"), ErrorNamed("BlobNotFound")),
        get("video", format!("com.atproto.sync.getBlob?did={did}&cid={blob}"), Differs(200, 206)).with("GET", "range: bytes=0-9\r\n"),
        get("goat pds account list", "com.atproto.sync.listRepos?limit=500", Entries("repos")),
        get("pdsls", "com.atproto.sync.listRepos?limit=1000", Entries("repos")),
        get("goat pds account status", format!("com.atproto.sync.getRepoStatus?did={did}"), Json),
        get("relay", format!("com.atproto.sync.getLatestCommit?did={did}"), Json),
        get("pdsls", "_health", Status),
        get("goat pds describe", "com.atproto.server.describeServer", JsonBut(&["did", "availableUserDomains", "inviteCodeRequired", "links", "contact", "blobUploadLimit"])),
        get("boat", format!("com.atproto.identity.resolveHandle?handle={handle}"), Json),
        get("boat", format!("com.atproto.identity.resolveHandle?handle=nobody-here{}", &handle[handle.find('.').unwrap_or(0)..]), Error),
        get("pdsls", format!("com.atproto.repo.describeRepo?repo={did}"), JsonBut(&["didDoc", "handleIsCorrect", "collections"])),
        get("pdsls", format!("com.atproto.repo.describeRepo?repo={handle}"), Entries("collections")),
        get("pdsls", format!("com.atproto.repo.describeRepo?repo={stranger}"), Error),
        get("pdsls", format!("com.atproto.repo.listRecords?repo={did}&collection={POSTS}"), JsonBut(&["cursor"])),
        get("pdsls", format!("com.atproto.repo.listRecords?repo={did}&collection={POSTS}&limit=2"), Json),
        get("pdsls", format!("com.atproto.repo.listRecords?repo={did}&collection={POSTS}&limit=2&reverse=true"), Json),
        get("pdsls", format!("com.atproto.repo.listRecords?repo={did}&collection={POSTS}&limit=2&cursor={rkey}"), JsonBut(&["cursor"])),
        get("pdsls", format!("com.atproto.repo.listRecords?repo={handle}&collection={POSTS}&limit=1&reverse=false"), Json),
        get("pdsls", format!("com.atproto.repo.getRecord?repo={did}&collection={POSTS}&rkey={rkey}"), Json),
        get("pdsls", format!("com.atproto.repo.getRecord?repo={did}&collection={POSTS}&rkey={rkey}"), Json).with("GET", "accept-encoding: gzip\r\n"),
        get("pdsls", format!("com.atproto.repo.getRecord?repo={handle}&collection={POSTS}&rkey={rkey}&cid={record}"), Json),
        get("pdsls", format!("com.atproto.repo.getRecord?repo={did}&collection={POSTS}&rkey={rkey}&cid={absent_block}"), Error),
        get("pdsls", format!("com.atproto.repo.getRecord?repo={did}&collection={POSTS}&rkey=absent"), Error),
        get("pdsls proof", format!("com.atproto.sync.getRecord?did={did}&collection={POSTS}&rkey={rkey}"), Car),
        get("pdsls proof", format!("com.atproto.sync.getRecord?did={did}&collection={POSTS}&rkey=absent"), Car),
        get("pdsls proof", format!("com.atproto.sync.getRecord?did={did}&collection=zz.example.none&rkey=absent"), Car),
        get("pdsls proof", format!("com.atproto.sync.getRecord?did={did}&collection=aa.example.none&rkey=absent"), Car),
        get("getBlocks", format!("com.atproto.sync.getBlocks?did={did}&cids={commit}&cids={data}&cids={record}"), Car),
        get("getBlocks", format!("com.atproto.sync.getBlocks?did={did}&cids={commit}&cids={absent_block}"), Error),
        get("getBlocks", format!("com.atproto.sync.getBlocks?did={other}&cids={commit}"), Error),
        get("restore", "com.atproto.repo.listMissingBlobs?limit=1000", ErrorWorded),
        get("restore", format!("com.atproto.repo.listMissingBlobs?did={did}"), Differs(401, 200)),
        get("goat xrpc", format!("com.atproto.sync.getRepo?did={stranger}"), Error),
        get("goat xrpc", format!("com.atproto.sync.getBlob?did={stranger}&cid={blob}"), Error),
        get("goat xrpc", format!("com.atproto.sync.listBlobs?did={stranger}"), Error),
        get("goat xrpc", format!("com.atproto.sync.getRepoStatus?did={stranger}"), Error),
        get("goat xrpc", "com.atproto.sync.getRepo", ErrorWorded),
        get("goat xrpc", "com.atproto.sync.getRepo?did=nonsense", ErrorWorded),
        get("goat xrpc", format!("com.atproto.sync.listBlobs?did={did}&limit=0"), ErrorWorded),
        get("goat xrpc", format!("com.atproto.sync.listBlobs?did={did}&limit=1001"), ErrorWorded),
        get("goat xrpc", format!("com.atproto.repo.listRecords?repo={did}&collection={POSTS}&limit=101"), ErrorWorded),
        get("goat xrpc", format!("com.atproto.sync.getBlob?did={did}&cid=nonsense"), ErrorWorded),
        get("any", "com.example.unknown.method", Differs(400, 501)),
        get("any", "com.atproto.sync.listHosts", Differs(400, 200)),
        get("any", "com.atproto.sync.getHostStatus?hostname=unknown.example", Differs(400, 400)),
    ]
}

/// An account that is off: the same errors, as long as a PDS has them.
fn standing_rows(world: &World) -> Vec<Row> {
    let World {
        did,
        blob,
        rkey,
        commit,
        ..
    } = world;
    let mut rows = vec![
        get(
            "status",
            format!("com.atproto.sync.getRepoStatus?did={did}"),
            Fit::Json,
        ),
        get("status", "com.atproto.sync.listRepos", Fit::Entries("repos")),
        get(
            "status",
            format!("com.atproto.repo.describeRepo?repo={did}"),
            Fit::Error,
        ),
        get(
            "status",
            format!("com.atproto.identity.resolveHandle?handle={}", world.handle),
            Fit::Error,
        ),
        // A PDS acts as if it did not know the account.
        get(
            "status",
            format!("com.atproto.repo.getRecord?repo={did}&collection={POSTS}&rkey={rkey}"),
            Fit::Status,
        ),
        get(
            "status",
            format!("com.atproto.repo.listRecords?repo={did}&collection={POSTS}"),
            Fit::Status,
        ),
    ];
    for path in [
        format!("getRepo?did={did}"),
        format!("getBlob?did={did}&cid={blob}"),
        format!("listBlobs?did={did}"),
        format!("getLatestCommit?did={did}"),
        format!("getRecord?did={did}&collection={POSTS}&rkey={rkey}"),
        format!("getBlocks?did={did}&cids={commit}"),
    ] {
        rows.push(get("status", format!("com.atproto.sync.{path}"), Fit::Error));
    }
    rows
}

/// What the documents say where the two cannot be the same word for word.
fn documents(pds: &str, ours: &str, world: &World) {
    let path = format!("/xrpc/com.atproto.repo.describeRepo?repo={}", world.did);
    let [theirs, described] = [pds, ours].map(|base| http::get(base, &path).expect("answers").json());
    for pointer in ["/didDoc/id", "/didDoc/alsoKnownAs", "/didDoc/service"] {
        assert_eq!(described.pointer(pointer), theirs.pointer(pointer), "{pointer}");
    }
    // The key may be written in another of its forms.
    let key = |described: &Value| {
        let method = &described["didDoc"]["verificationMethod"][0];
        let text = |name: &str| method[name].as_str().expect("a text").to_owned();
        SigningKey::from_legacy(&text("type"), &text("publicKeyMultibase")).expect("a key")
    };
    assert_eq!(key(&theirs), key(&described));
    assert_eq!(described["handleIsCorrect"], false);
    let described = http::get(ours, "/xrpc/com.atproto.server.describeServer")
        .expect("answers")
        .json();
    let document = http::get(ours, "/.well-known/did.json").expect("answers").json();
    assert_eq!(
        (&document["id"], &described["did"]),
        (&json!("did:web:backup.example.com"), &document["id"])
    );
    assert_eq!(document["service"][0]["id"], "#repo_backup");
    let hosts = http::get(ours, "/xrpc/com.atproto.sync.listHosts")
        .expect("answers")
        .json();
    let host = &hosts["hosts"][0];
    assert_eq!(
        (&host["accountCount"], &host["status"]),
        (&json!(2), &json!("active")),
        "{hosts}"
    );
    let status = format!(
        "/xrpc/com.atproto.sync.getHostStatus?hostname={}",
        host["hostname"].as_str().expect("a name")
    );
    assert_eq!(http::get(ours, &status).expect("answers").json(), *host);
}

/// What a browser keeps need not be sent again.
fn validators(ours: &str, world: &World) {
    let did = &world.did;
    for path in [
        format!("com.atproto.sync.getRepo?did={did}"),
        format!("com.atproto.sync.getBlob?did={did}&cid={}", world.blob),
        format!("com.atproto.sync.listBlobs?did={did}"),
        format!(
            "com.atproto.sync.getRecord?did={did}&collection={POSTS}&rkey={}",
            world.rkey
        ),
        format!("com.atproto.repo.listRecords?repo={did}&collection={POSTS}"),
        "com.atproto.sync.listRepos".to_owned(),
    ] {
        for coding in ["", "accept-encoding: gzip\r\n"] {
            let path = format!("/xrpc/{path}");
            let first = http::ask("GET", ours, &path, coding).expect("answers");
            let tag = first.header("etag").expect("a validator").to_owned();
            assert!(tag.starts_with('"'), "it is strong");
            let held = format!("{coding}if-none-match: {tag}\r\n");
            let again = http::ask("GET", ours, &path, &held).expect("answers");
            assert_eq!((again.status, again.body.len()), (304, 0), "{path}");
            assert_eq!(again.header("etag"), Some(tag.as_str()), "{path}");
        }
    }
}

#[test]
fn clients_get_what_a_pds_gives_them() {
    let began = Instant::now();
    let sandbox = Sandbox::up("pds,plc");
    sandbox.populate(2, 30, 4);
    let (did, other) = (sandbox.dids()[0].clone(), sandbox.dids()[1].clone());
    let pds = sandbox.pds_url();
    let latest = |name: &str| {
        let path = format!("/xrpc/com.atproto.sync.getLatestCommit?did={did}");
        let answer = http::get(&pds, &path).expect("answers").json();
        answer[name].as_str().expect("a text").to_owned()
    };
    let first = latest("rev");
    sandbox.picture(&did);
    let firekeep = Firekeep::new(&sandbox, "data").args(&["--public-url", "https://backup.example.com"]);
    let mut running = firekeep.start();
    running.wait_filled(2);
    let earlier = latest("rev");
    let (uri, record, blob) = sandbox.picture(&did);
    sandbox.note(&did, "first", "a note");
    running.wait_head(&did, &latest("cid"));
    running.wait_status("its blobs are here", |status| status.blobs("wanted") == 0);
    let ours = firekeep.url();

    let repo = http::get(&pds, &format!("/xrpc/com.atproto.sync.getRepo?did={did}")).expect("answers");
    let car = parse_car(&repo.body).expect("a CAR");
    let (commit, block) = car
        .blocks
        .iter()
        .find(|(cid, _)| *cid == car.roots[0])
        .expect("the commit");
    let data = firekeep::repo::commit::Commit::decode(block)
        .expect("a commit")
        .data;
    let handle =
        http::get(&pds, &format!("/xrpc/com.atproto.repo.describeRepo?repo={did}")).expect("answers");
    let world = World {
        handle: handle.json()["handle"].as_str().expect("a handle").to_owned(),
        rkey: uri.rsplit('/').next().expect("an rkey").to_owned(),
        newest: latest("rev"),
        commit: commit.to_string(),
        data: data.to_string(),
        did,
        other,
        blob,
        record,
        first,
        earlier,
    };
    let mut rows = judge(&open_rows(&world), &pds, &ours);
    documents(&pds, &ours, &world);
    validators(&ours, &world);

    for (off, on) in [("takedown", "untakedown"), ("deactivate", "activate")] {
        let shown = |status: u16| {
            wait_for("the account's standing is known", || {
                let path = format!("/xrpc/com.atproto.sync.getLatestCommit?did={}", world.did);
                let found = http::get(&ours, &path).expect("answers").status;
                if found == status { Ok(()) } else { Err(found) }
            });
        };
        sandbox.takedown(off, &world.did, &[]);
        shown(400);
        rows += judge(&standing_rows(&world), &pds, &ours);
        sandbox.takedown(on, &world.did, &[]);
        shown(200);
    }
    running.stop();
    report(
        "clients",
        began,
        &format!("{rows} requests answered as the PDS does, or as said"),
    );
}
