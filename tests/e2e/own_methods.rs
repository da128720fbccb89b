//! Firekeep's own methods, asked by real accounts: by tokens that their PDSes make, through `atproto-proxy`, by a
//! rotation key, and by the admin. Of both PDSes only the accounts that sign up are followed.

use std::io::Write as _;
use std::process::Stdio;
use std::time::Instant;

use firekeep::repo::car::parse_car;
use firekeep::repo::signing_key::{Curve, SecretKey};
use serde_json::{Value, json};

use crate::support::firekeep::{Firekeep, Running};
use crate::support::http::{self, Answer};
use crate::support::sandbox::Sandbox;
use crate::support::{report, wait_for};

const OWN: &str = "dev.firekeep.backup";

/// An account that was made over XRPC, and its session.
struct Member {
    did: String,
    pds: String,
    session: String,
}

impl Member {
    /// `recovery`: a rotation key above the PDS's own.
    fn new(pds: &str, name: &str, recovery: Option<&str>) -> Self {
        let described = http::get(pds, "/xrpc/com.atproto.server.describeServer").expect("answers");
        let domain = described.json()["availableUserDomains"][0].clone();
        let handle = format!("{name}{}", domain.as_str().expect("a domain"));
        let mut input = json!({
            "handle": handle, "email": format!("{name}@example.test"), "password": "a long password",
        });
        if let Some(key) = recovery {
            input["recoveryKey"] = key.into();
        }
        let made = http::post(pds, "/xrpc/com.atproto.server.createAccount", "", &input).expect("answers");
        assert_eq!(made.status, 200, "{}", made.text());
        let made = made.json();
        let text = |name: &str| made[name].as_str().expect("a text").to_owned();
        Self {
            did: text("did"),
            pds: pds.to_owned(),
            session: text("accessJwt"),
        }
    }

    /// A token of its PDS for one of our methods.
    fn token(&self, service: &str, method: &str) -> String {
        let path = format!(
            "/xrpc/com.atproto.server.getServiceAuth?aud={}&lxm={method}",
            service.replace('%', "%25")
        );
        let bearer = format!("authorization: Bearer {}\r\n", self.session);
        let answer = http::ask("GET", &self.pds, &path, &bearer).expect("answers");
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.json()["token"].as_str().expect("a token").to_owned()
    }

    /// Asks the PDS to pass a request on.
    fn proxied(&self, service: &str, verb: &str, path: &str) -> Answer {
        let length = if verb == "POST" {
            "content-length: 0\r\n"
        } else {
            ""
        };
        let headers = format!(
            "authorization: Bearer {}\r\natproto-proxy: {service}#repo_backup\r\n{length}",
            self.session
        );
        http::ask(verb, &self.pds, path, &headers).expect("answers")
    }

    fn call(&self, method: &str, input: &Value) -> Answer {
        let bearer = format!("Bearer {}", self.session);
        http::post(&self.pds, &format!("/xrpc/{method}"), &bearer, input).expect("answers")
    }

    fn post(&self, text: &str) -> String {
        let record =
            json!({ "$type": "app.bsky.feed.post", "text": text, "createdAt": "2026-01-02T03:04:05Z" });
        let input = json!({ "repo": self.did, "collection": "app.bsky.feed.post", "record": record });
        let made = self.call("com.atproto.repo.createRecord", &input);
        assert_eq!(made.status, 200, "{}", made.text());
        made.json()["commit"]["cid"]
            .as_str()
            .expect("a commit")
            .to_owned()
    }
}

fn post(running: &Running, method: &str, authorization: &str, input: &Value) -> Answer {
    let (url, path) = (running.setup.url(), format!("/xrpc/{method}"));
    http::post(&url, &path, authorization, input).expect("answers")
}

fn get(running: &Running, path: &str, authorization: &str) -> Answer {
    let headers = format!("authorization: {authorization}\r\n");
    http::ask("GET", &running.setup.url(), path, &headers).expect("answers")
}

/// Status and name of an error.
fn error(answer: &Answer) -> (u16, String) {
    (
        answer.status,
        answer.json()["error"].as_str().unwrap_or_default().to_owned(),
    )
}

/// A token that a rotation key signs.
fn rotated(key: &SecretKey, did: &str, service: &str, method: &str) -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let now = now.expect("after 1970").as_secs();
    let header = json!({ "alg": "ES256K", "kid": key.public().to_did_key() });
    let claims = json!({
        "iss": did, "aud": service, "lxm": method, "iat": now, "exp": now + 60, "jti": format!("{now}{method}"),
    });
    let part = |value: &Value| data_encoding::BASE64URL_NOPAD.encode(value.to_string().as_bytes());
    let signed = format!("{}.{}", part(&header), part(&claims));
    let sig = data_encoding::BASE64URL_NOPAD.encode(&key.sign(signed.as_bytes()));
    format!("Bearer {signed}.{sig}")
}

fn admin_password(setup: &Firekeep, path: &str, password: &str) {
    let mut child = setup
        .command()
        .args(["admin-password", "--output", path])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .expect("firekeep starts");
    let mut input = child.stdin.take().expect("piped");
    input
        .write_all(format!("{password}\n").as_bytes())
        .expect("taken");
    drop(input);
    assert!(child.wait().expect("ends").success());
}

#[test]
#[expect(clippy::too_many_lines, reason = "one story on PDSes that are started once")]
fn accounts_ask_for_their_backup() {
    let began = Instant::now();
    let sandbox = Sandbox::up_as(&["--with", "pds,plc", "--pds", "2"]);
    let (one, two) = (sandbox.url_of(0), sandbox.url_of(1));
    let key = SecretKey::from_bytes(Curve::K256, &[77; 32]).expect("a scalar");
    let alice = Member::new(&one, "alice-own", Some(&key.public().to_did_key()));
    let bob = Member::new(&one, "bob-own", None);
    let carol = Member::new(&two, "carol-own", None);
    for member in [&alice, &bob, &carol] {
        member.post("first");
    }
    let hash = sandbox.folder().join("admin.hash");
    let hash = hash.to_str().expect("a text");
    let setup = Firekeep::following(&sandbox, "data", &[0]);
    admin_password(&setup, hash, "correct horse");
    let public = format!("http://localhost:{}", setup.listen);
    let setup = setup.args(&[
        "--follow",
        "listed",
        "--sign-up",
        "open",
        "--admin-password-file",
        hash,
    ]);
    let setup = setup.args(&["--public-url", &public]);
    let service = format!("did:web:localhost%3A{}", setup.listen);
    let mut running = setup.start();
    let admin = http::basic("admin", "correct horse");

    // Nobody signed up: both are listed, and nothing is held.
    for did in [&alice.did, &bob.did] {
        running.wait_account(did, "it is listed, and not followed", |row| {
            row["followed"] == false
        });
    }
    // A token of the PDS signs alice up, and counts once.
    let sign_up = format!("{OWN}.signUp");
    let token = format!("Bearer {}", alice.token(&service, &sign_up));
    let signed = post(&running, &sign_up, &token, &json!({}));
    assert_eq!(signed.status, 200, "{}", signed.text());
    assert_eq!(signed.json()["pinnedKey"], Value::Null, "a PDS pins no key");
    assert_eq!(
        error(&post(&running, &sign_up, &token, &json!({}))),
        (401, "InvalidToken".to_owned())
    );
    running.wait_account(&alice.did, "it is live", |row| {
        row["sync"] == "live" && row["rev"].is_string()
    });
    let commit = alice.post("second");
    bob.post("nobody keeps this");
    running.wait_head(&alice.did, &commit);
    assert_eq!(
        running.account(&bob.did)["rev"],
        Value::Null,
        "bob did not sign up"
    );

    // Carol's PDS is followed for her alone. She asks through it, in the shape of PDS MOover's page.
    let moover = "/xrpc/com.pdsmoover.backup";
    let answer = carol.proxied(&service, "POST", &format!("{moover}.signUp"));
    assert_eq!(answer.status, 200, "{}", answer.text());
    let again = carol.proxied(&service, "POST", &format!("{moover}.signUp"));
    assert_eq!(error(&again), (409, "AlreadyRegistered".to_owned()));
    running.wait_account(&carol.did, "it is live", |row| {
        row["sync"] == "live" && row["rev"].is_string()
    });
    let status = carol.proxied(
        &service,
        "GET",
        &format!("{moover}.getRepoStatus?did={}", carol.did),
    );
    assert_eq!(status.json()["active"], true, "{}", status.text());
    let asked = carol.proxied(&service, "POST", &format!("{moover}.requestBackup"));
    assert_eq!(asked.status, 200, "{}", asked.text());
    let hosts = http::get(&setup.url(), &format!("/xrpc/{OWN}.listHosts"))
        .expect("answers")
        .json();
    assert_eq!(hosts["hosts"].as_array().map(Vec::len), Some(2), "{hosts}");

    // What was is for the admin: not for a token of the PDS, nor for a key that is minutes old.
    let history = format!("{OWN}.getRepoAt");
    let path = format!("/xrpc/{history}?did={}", alice.did);
    running.snapshot();
    let by_pds = get(
        &running,
        &path,
        &format!("Bearer {}", alice.token(&service, &history)),
    );
    assert_eq!(error(&by_pds), (403, "Forbidden".to_owned()));
    let by_key = get(&running, &path, &rotated(&key, &alice.did, &service, &history));
    assert_eq!(error(&by_key), (403, "Forbidden".to_owned()), "{}", by_key.text());
    assert!(by_key.text().contains("72 hours"), "{}", by_key.text());
    assert_eq!(
        error(&get(&running, &path, &http::basic("admin", "wrong horse"))).0,
        401
    );
    let by_admin = get(&running, &path, &admin);
    assert_eq!(
        by_admin.status,
        200,
        "{}",
        String::from_utf8_lossy(&by_admin.body)
    );
    let car = parse_car(&by_admin.body).expect("a CAR");
    assert_eq!(car.roots[0].to_string(), commit);
    let proof = post(
        &running,
        &format!("{OWN}.verify"),
        &admin,
        &json!({ "did": alice.did }),
    )
    .json();
    assert_eq!(
        (&proof["mirror"]["ok"], &proof["archive"]["ok"]),
        (&true.into(), &true.into()),
        "{proof}"
    );

    // Deactivated, she is hidden from the public, and still sees herself.
    assert_eq!(
        alice
            .call("com.atproto.server.deactivateAccount", &json!({}))
            .status,
        200
    );
    let (export, path) = (
        "com.atproto.sync.getRepo",
        format!("/xrpc/com.atproto.sync.getRepo?did={}", alice.did),
    );
    wait_for("the account is hidden", || {
        let answer = http::get(&setup.url(), &path).expect("answers");
        (answer.status == 400).then_some(()).ok_or(answer.status)
    });
    assert_eq!(
        error(&get(&running, &path, &format!("Bearer {}", alice.session))).1,
        "RepoDeactivated"
    );
    let own = get(&running, &path, &rotated(&key, &alice.did, &service, export));
    assert_eq!(own.status, 200, "{}", String::from_utf8_lossy(&own.body));
    assert_eq!(get(&running, &path, &admin).status, 200);

    // A removal waits, and is taken back. What was signed up outlives a restart.
    let remove = format!("{OWN}.removeAccount");
    let token = |member: &Member| format!("Bearer {}", member.token(&service, &remove));
    let due = post(&running, &remove, &token(&carol), &json!({})).json();
    assert!(due["removed"] == false && due["removalDue"].is_string(), "{due}");
    let at_once = post(&running, &remove, &token(&carol), &json!({ "now": true }));
    assert_eq!(error(&at_once), (403, "Forbidden".to_owned()));
    let kept = post(&running, &remove, &token(&carol), &json!({ "cancel": true })).json();
    assert_eq!(kept["removalDue"], Value::Null, "{kept}");
    running.stop();
    let commit = carol.post("while nobody looked");
    let mut running = setup.start();
    running.wait_head(&carol.did, &commit);
    let gone = post(
        &running,
        &remove,
        &admin,
        &json!({ "did": carol.did, "now": true }),
    );
    assert_eq!(gone.json()["removed"], true, "{}", gone.text());
    let path = format!("/xrpc/com.atproto.sync.getRepo?did={}", carol.did);
    assert_eq!(
        error(&get(&running, &path, &admin)).1,
        "RepoNotFound",
        "erased for the admin too"
    );
    running.stop();
    report("own_methods", began, "3 accounts, 2 PDSes");
}
