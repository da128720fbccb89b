//! Holds together what is served: the table of methods, the code, and the published lexicons in `lexicons/`.
//!
//! A small reader of lexicons validates real answers; <https://atproto.com/specs/lexicon>.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::methods::{ACCESS_ERRORS, Access, COMMON_ERRORS, METHODS, Method};
use crate::archive::test_archive::{Churn, TestArchive};
use crate::metrics::labels::Label as _;
use crate::mirror::memory::MemoryStore;
use crate::mirror::rows::{AccountStatus, BlobFailure, BlobState, HostRow, Row as _};
use crate::mirror::{Batch, Family, Store as _, keyspace};
use crate::repo::signing_key::{Curve, SecretKey};
use crate::restore::token::service_token;
use crate::serve::fixture::{Account, Answer, Directory, Server, admin_header, post, record, rev};
use crate::serve::params::AtIdentifier;
use crate::sim::account::post as post_record;
use crate::types::{Cid, Did, HostName, Nsid, RecordKey, RepoPath, Rev, Timestamp};

/// All lexicon files, by NSID.
struct Lexicons(BTreeMap<String, Value>);

impl Lexicons {
    fn read() -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("lexicons");
        let (mut folders, mut files) = (vec![root.clone()], BTreeMap::new());
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(&folder).expect("a folder") {
                let path = entry.expect("an entry").path();
                if path.is_dir() {
                    folders.push(path);
                    continue;
                }
                let lexicon: Value = serde_json::from_slice(&std::fs::read(&path).expect("readable"))
                    .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
                let id = lexicon["id"].as_str().expect("an id").to_owned();
                let place: PathBuf = id.split('.').collect();
                assert_eq!(
                    root.join(place).with_extension("json"),
                    path,
                    "a file stands where its id says"
                );
                assert_eq!(lexicon["lexicon"], 1);
                files.insert(id, lexicon);
            }
        }
        Self(files)
    }

    fn main(&self, nsid: &str) -> &Value {
        let lexicon = self.0.get(nsid).unwrap_or_else(|| panic!("no lexicon of {nsid}"));
        &lexicon["defs"]["main"]
    }

    /// What is wrong with a value, if anything is.
    fn check(&self, within: &str, schema: &Value, value: &Value, at: &str) -> Result<(), String> {
        let wrong = |what: &str| Err(format!("{at}: {what}: {value}"));
        match schema["type"].as_str().expect("a type") {
            "ref" => {
                let target = schema["ref"].as_str().expect("a ref");
                let (nsid, name) = target.split_once('#').unwrap_or((target, "main"));
                let nsid = if nsid.is_empty() { within } else { nsid };
                self.check(nsid, &self.0[nsid]["defs"][name], value, at)
            }
            "object" => {
                let Some(fields) = value.as_object() else {
                    return wrong("no object");
                };
                for required in schema["required"].as_array().into_iter().flatten() {
                    let name = required.as_str().expect("a name");
                    if !fields.contains_key(name) {
                        return wrong(&format!("lacks {name}"));
                    }
                }
                for (name, field) in fields {
                    let Some(schema) = schema["properties"].get(name) else {
                        return wrong(&format!("the lexicon knows no {name}"));
                    };
                    self.check(within, schema, field, &format!("{at}.{name}"))?;
                }
                Ok(())
            }
            "array" => {
                let Some(items) = value.as_array() else {
                    return wrong("no array");
                };
                let each = |item| self.check(within, &schema["items"], item, &format!("{at}[]"));
                items.iter().try_for_each(each)
            }
            "string" => {
                let Some(text) = value.as_str() else {
                    return wrong("no string");
                };
                match schema["format"].as_str() {
                    Some(format) if !has_format(format, text) => wrong(format),
                    _ => Ok(()),
                }
            }
            "integer" if !value.is_i64() && !value.is_u64() => wrong("no integer"),
            "boolean" if !value.is_boolean() => wrong("no boolean"),
            "unknown" if !value.is_object() => wrong("no object"),
            "integer" | "boolean" | "unknown" => Ok(()),
            other => panic!("this reader knows no {other}"),
        }
    }

    fn check_output(&self, nsid: &str, value: &Value) -> Result<(), String> {
        self.check(nsid, &self.main(nsid)["output"]["schema"], value, nsid)
    }
}

fn has_format(format: &str, text: &str) -> bool {
    match format {
        "did" => text.parse::<Did>().is_ok(),
        "cid" => text.parse::<Cid>().is_ok(),
        "tid" => text.parse::<Rev>().is_ok(),
        "nsid" => text.parse::<Nsid>().is_ok(),
        "handle" => matches!(text.parse(), Ok(AtIdentifier::Handle(_))),
        "at-uri" => text.strip_prefix("at://").is_some_and(|rest| {
            rest.split_once('/')
                .is_some_and(|(did, path)| did.parse::<Did>().is_ok() && path.parse::<RepoPath>().is_ok())
        }),
        "uri" => text.contains(':'),
        "datetime" => text.parse::<Timestamp>().is_ok(),
        "record-key" => text.parse::<RecordKey>().is_ok(),
        other => panic!("this reader knows no {other}"),
    }
}

#[test]
fn the_table_takes_and_says_what_the_lexicons_say() {
    let lexicons = Lexicons::read();
    for method in METHODS {
        let nsid = method.nsid();
        let main = lexicons.main(nsid);
        let kind = if method.input.is_some() {
            "procedure"
        } else {
            "query"
        };
        assert_eq!(main["type"], kind, "{nsid}");
        let fields = |of: &Value| -> BTreeSet<String> {
            of["properties"]
                .as_object()
                .into_iter()
                .flatten()
                .map(|(name, _)| name.clone())
                .collect()
        };
        let input: BTreeSet<String> = method
            .input
            .into_iter()
            .flatten()
            .map(|name| (*name).to_owned())
            .collect();
        assert_eq!(fields(&main["input"]["schema"]), input, "{nsid}");
        if method.is_own() {
            assert!(main["description"].is_string(), "{nsid}");
        }
        let published: BTreeSet<&str> = main["parameters"]["properties"]
            .as_object()
            .into_iter()
            .flat_map(|params| params.keys().map(String::as_str))
            .chain(method.added_params.iter().copied())
            .collect();
        let ours: BTreeSet<&str> = method.params.iter().copied().collect();
        assert_eq!(ours, published, "{nsid}");
        let declared: BTreeSet<&str> = main["errors"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|error| error["name"].as_str().expect("a name"))
            .collect();
        if method.is_own() {
            // Ours say each of them, and no other.
            let mut ours: BTreeSet<&str> = method.errors.iter().copied().collect();
            if method.access != Access::Open {
                ours.extend(ACCESS_ERRORS);
            }
            assert_eq!(declared, ours, "{nsid}");
        }
        for error in method.errors {
            assert!(
                declared.contains(error) || method.undeclared,
                "{nsid} answers with {error}, which its lexicon does not have"
            );
        }
    }
    let served: BTreeSet<&str> = METHODS.iter().map(Method::nsid).collect();
    assert_eq!(served.len(), METHODS.len(), "each stands once");
    for nsid in lexicons.0.keys().filter(|nsid| !nsid.ends_with(".defs")) {
        assert!(
            served.contains(nsid.as_str()),
            "{nsid} has a lexicon and is not served"
        );
    }
    for endpoint in crate::metrics::labels::Endpoint::ALL {
        assert!(
            served.contains(endpoint.text()) || !endpoint.text().contains('.'),
            "{endpoint:?} is counted and not served"
        );
    }
}

/// A valid value of each parameter, for the account.
fn valid(param: &str, account: &Account) -> String {
    match param {
        "did" | "repo" => account.did.to_string(),
        "cid" => Cid::of_blob(b"blob").to_string(),
        "cids" => account.head().commit.to_string(),
        "since" => rev(0).to_string(),
        "collection" => "com.example.thing".to_owned(),
        "rkey" => "one".to_owned(),
        "limit" => "10".to_owned(),
        "reverse" => "true".to_owned(),
        "hostname" => "pds.example.com".to_owned(),
        "handle" => "alice.test".to_owned(),
        "time" => "2100-01-02T03:04:05Z".to_owned(),
        "rev" => rev(0).to_string(),
        "url" => "https://pds.example.com".to_owned(),
        "follow" => "listed".to_owned(),
        other => panic!("no value of {other}"),
    }
}

/// The query of a method, with one parameter given another value or (`None`) left out.
fn query(method: &Method, account: &Account, changed: Option<(&str, Option<&str>)>) -> String {
    let mut pairs = Vec::new();
    for param in method.params.iter().copied() {
        let value = match changed {
            Some((name, value)) if name == param => value.map(str::to_owned),
            // Pages begin at the beginning, and any version of a record will do.
            _ if ["cursor", "rev"].contains(&param)
                || (param == "cid" && method.params.contains(&"rkey")) =>
            {
                None
            }
            _ => Some(valid(param, account)),
        };
        pairs.extend(value.map(|value| format!("{param}={value}")));
    }
    format!("/xrpc/{}?{}", method.nsid(), pairs.join("&"))
}

/// The key of the account's document.
fn key() -> SecretKey {
    SecretKey::from_bytes(Curve::K256, &[7; 32]).expect("a scalar")
}

/// Asks as whoever may: of a procedure with the fields of its input, one of them changed.
async fn ask(
    server: &Server,
    method: &Method,
    account: &Account,
    changed: Option<(&str, Option<Value>)>,
) -> Answer {
    let headers = match method.access {
        Access::Open => String::new(),
        Access::Account => {
            let unique = u64::from_be_bytes(
                crate::types::cid::sha256(format!("{method:?}{changed:?}").as_bytes())[..8]
                    .try_into()
                    .expect("8"),
            );
            let service = "did:web:backup.example.com";
            let token = service_token(
                &key(),
                &account.did,
                service,
                method.nsid(),
                server.clock.now(),
                unique,
            );
            format!("authorization: Bearer {}\r\n", *token)
        }
        Access::Owner | Access::Admin => admin_header(),
    };
    let Some(fields) = method.input else {
        let changed = changed.map(|(name, value)| {
            (
                name,
                value.map(|value| value.as_str().expect("a text").to_owned()),
            )
        });
        let changed = changed.as_ref().map(|(name, value)| (*name, value.as_deref()));
        return server
            .ask("GET", &query(method, account, changed), &headers)
            .await;
    };
    let mut input = serde_json::Map::new();
    for name in fields {
        match &changed {
            Some((changed, value)) if changed == name => {
                input.extend(value.clone().map(|value| ((*name).to_owned(), value)));
            }
            // Neither is usual.
            _ if ["cancel", "now"].contains(name) => {}
            _ => drop(input.insert((*name).to_owned(), valid(name, account).into())),
        }
    }
    let body = Value::Object(input).to_string();
    let path = format!("/xrpc/{}", method.nsid());
    // Some have no input at all, and then no body.
    let body = if fields.is_empty() { "" } else { &body };
    post(server.xrpc, &path, &headers, body).await
}

async fn world() -> (MemoryStore, Server, Account, TestArchive) {
    let store = MemoryStore::new();
    let mut churn = Churn::new(1).run(45);
    let later = churn.last().received.plus(std::time::Duration::from_secs(1));
    churn.write(
        &[("com.example.thing/one".to_owned(), Some(post_record("one")))],
        later,
        later,
    );
    let archive = TestArchive::of(&churn).await;
    let mut account = Account::new("alice", 1)
        .handle("alice.test")
        .record("one", 5, &record("text"))
        .record("two", 5, &record("text"))
        .blob("three", 6, b"blob", "image/png", BlobState::Held)
        .blob_without_bytes(
            "four",
            6,
            Cid::of_blob(b"lost"),
            "image/png",
            BlobState::Missing {
                reason: BlobFailure::NotFound,
                tries: 1,
            },
        );
    account.did = churn.did().clone();
    account.save(&store);
    let host: HostName = "pds.example.com".parse().expect("a host");
    let row = HostRow {
        cursor: Some(3),
        ..HostRow::new("https://pds.example.com")
    };
    let mut batch = Batch::new();
    batch.put(Family::Hosts, keyspace::encode_host(&host), row.encode());
    store.write(batch).expect("written");
    let server = Server::start(&store).await;
    assert!(server.bucket.set(archive.bucket.clone()).is_ok());
    let identity = Directory::identity(&account.did, &key(), "pds.example.com");
    let mut identities = server.directory.identities.lock().expect("no panic");
    identities.insert(account.did.clone(), identity);
    drop(identities);
    (store, server, account, archive)
}

#[tokio::test]
async fn answers_are_what_the_lexicons_say() {
    let lexicons = Lexicons::read();
    let (_store, server, account, _archive) = world().await;
    for method in METHODS {
        let nsid = method.nsid();
        // Some may be asked for now and then only.
        server.clock.advance(std::time::Duration::from_secs(600));
        let answer = ask(&server, method, &account, None).await;
        assert_eq!(
            answer.status,
            200,
            "{nsid}: {}",
            String::from_utf8_lossy(&answer.body)
        );
        let Some(encoding) = lexicons.main(nsid)["output"]["encoding"].as_str() else {
            assert!(answer.body.is_empty(), "{nsid}");
            continue;
        };
        let given = answer.header("content-type");
        assert!(
            encoding == "*/*" || given.split(';').next() == Some(encoding),
            "{nsid}: {given}"
        );
        if encoding == "application/json" {
            let value = answer.json();
            lexicons
                .check_output(nsid, &value)
                .unwrap_or_else(|wrong| panic!("{wrong}"));
            // The reader sees what is wrong.
            let mut wrong = value.clone();
            wrong["notInTheLexicon"] = true.into();
            assert!(lexicons.check_output(nsid, &wrong).is_err(), "{nsid}");
            let required = &lexicons.main(nsid)["output"]["schema"]["required"];
            for name in required.as_array().into_iter().flatten() {
                let name = name.as_str().expect("a name");
                for broken in [None, Some(Value::Null)] {
                    let mut wrong = value.as_object().expect("an object").clone();
                    wrong.remove(name);
                    wrong.extend(broken.map(|null| (name.to_owned(), null)));
                    assert!(
                        lexicons.check_output(nsid, &wrong.into()).is_err(),
                        "{nsid} {name}"
                    );
                }
            }
        }
    }
}

#[tokio::test]
async fn every_parameter_is_read_and_every_required_one_is_required() {
    let lexicons = Lexicons::read();
    let (_store, server, account, _archive) = world().await;
    for method in METHODS {
        let nsid = method.nsid();
        if let Some(fields) = method.input {
            let required = &lexicons.main(nsid)["input"]["schema"]["required"];
            for field in fields.iter().copied() {
                for bad in [serde_json::json!(["a"]), serde_json::json!(7)] {
                    let answer = ask(&server, method, &account, Some((field, Some(bad)))).await;
                    assert_eq!(
                        answer.error(),
                        (400, "InvalidRequest".to_owned()),
                        "{nsid} {field}"
                    );
                    let message = answer.json()["message"].as_str().expect("a text").to_owned();
                    assert!(message.contains(field), "{nsid} {field}: {message}");
                }
                let without = ask(&server, method, &account, Some((field, None))).await;
                let is_required = required.as_array().is_some_and(|all| all.contains(&field.into()));
                assert_eq!(without.status != 200, is_required, "{nsid} without {field}");
            }
            continue;
        }
        let properties = &lexicons.main(nsid)["parameters"];
        let required: Vec<&str> = properties["required"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|name| name.as_str().expect("a name"))
            .collect();
        for param in method.params.iter().copied() {
            for bad in ["%00", "a%2Fb", "%F0%9F%A6%8B"] {
                let answer = ask(&server, method, &account, Some((param, Some(bad.into())))).await;
                assert_eq!(
                    answer.error(),
                    (400, "InvalidRequest".to_owned()),
                    "{nsid} {param}={bad}"
                );
                let message = answer.json()["message"].as_str().expect("a text").to_owned();
                assert!(message.contains(param), "{nsid} {param}: {message}");
            }
            let without = ask(&server, method, &account, Some((param, None))).await;
            if required.contains(&param) {
                assert_eq!(
                    without.error(),
                    (400, "InvalidRequest".to_owned()),
                    "{nsid} without {param}"
                );
            } else if !method.added_params.contains(&param) {
                assert_eq!(without.status, 200, "{nsid} without {param}");
            }
        }
        let limits = &properties["properties"]["limit"];
        if let (Some(least), Some(most)) = (limits["minimum"].as_u64(), limits["maximum"].as_u64()) {
            for (limit, status) in [(least - 1, 400), (least, 200), (most, 200), (most + 1, 400)] {
                let text = limit.to_string();
                let answer = ask(&server, method, &account, Some(("limit", Some(text.into())))).await;
                assert_eq!(answer.status, status, "{nsid} limit={limit}");
            }
        }
        let later = format!("{}&aParameterOfALaterLexicon=1", query(method, &account, None));
        let headers = if method.access == Access::Open {
            String::new()
        } else {
            admin_header()
        };
        assert_eq!(server.ask("GET", &later, &headers).await.status, 200, "{nsid}");
    }
}

#[tokio::test]
async fn every_error_of_the_table_is_given_and_no_other() {
    let (store, server, account, _archive) = world().await;
    let standings = [
        ("takendown", AccountStatus::Takendown),
        ("suspended", AccountStatus::Suspended),
        ("deactivated", AccountStatus::Deactivated),
        ("deleted", AccountStatus::Deleted),
    ];
    let mut accounts: Vec<String> = vec!["did:plc:zzzzzzzzzzzzzzzzzzzzzzzz".to_owned()];
    for (number, (name, status)) in standings.into_iter().enumerate() {
        let other = Account::new(name, 10 + number as u64)
            .record("one", 5, &record("text"))
            .status(status);
        other.save(&store);
        accounts.push(other.did.to_string());
    }
    let absent = Cid::of_block(b"absent").to_string();
    let absent_blob = Cid::of_blob(b"absent").to_string();
    for method in METHODS.iter().filter(|method| method.input.is_none()) {
        let nsid = method.nsid();
        let mut changes: Vec<(&str, Option<&str>)> = Vec::new();
        for param in method.params.iter().copied() {
            match param {
                "did" | "repo" => changes.extend(accounts.iter().map(|did| (param, Some(did.as_str())))),
                "rkey" => changes.push((param, Some("absent"))),
                "cid" => changes.extend([
                    (param, Some(absent.as_str())),
                    (param, Some(absent_blob.as_str())),
                ]),
                "cids" => changes.push((param, Some(&absent))),
                "hostname" => changes.push((param, Some("unknown.example.com"))),
                "handle" => changes.push((param, Some("unknown.example.com"))),
                _ => {}
            }
            changes.push((param, None));
        }
        let mut given = BTreeSet::new();
        for change in changes {
            let change = (change.0, change.1.map(Value::from));
            let answer = ask(&server, method, &account, Some(change)).await;
            if answer.status != 200 {
                given.insert(answer.error().1);
            }
        }
        let given: BTreeSet<&str> = given
            .iter()
            .map(String::as_str)
            .filter(|name| !COMMON_ERRORS.contains(name))
            .collect();
        let table: BTreeSet<&str> = method.errors.iter().copied().collect();
        match method.is_own() {
            false => assert_eq!(given, table, "{nsid}"),
            // Those of ours that need a story are told one in `own`'s tests.
            true => assert!(given.is_subset(&table), "{nsid}: {given:?}"),
        }
    }
}
