//! A did:web is its owner's: a restore says what he must publish, waits for it, and goes on.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use serde_json::Value;

use super::restore::{blobs, text};
use crate::support::alone::{blocks, repository};
use crate::support::firekeep::Firekeep;
use crate::support::http;
use crate::support::report;
use crate::support::sandbox::Sandbox;

/// Serves one file, whatever is asked for.
struct Site {
    port: u16,
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Site {
    fn start(file: PathBuf) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("an address").port();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(mut stream) = stream else { continue };
                let mut reader = BufReader::new(&stream);
                let mut line = String::new();
                while reader.read_line(&mut line).is_ok_and(|read| read > 2) {
                    line.clear();
                }
                let page = std::fs::read(&file).unwrap_or_default();
                let head = format!(
                    "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
                    page.len()
                );
                // Whoever asked may be gone.
                let _gone = stream.write_all(&[head.as_bytes(), &page].concat());
            }
        });
        Self {
            port,
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        // The loop sees the flag at its next caller.
        let woken = TcpStream::connect(("127.0.0.1", self.port));
        if let (Ok(_), Some(thread)) = (woken, self.thread.take()) {
            let _panicked = thread.join();
        }
    }
}

/// Puts these members in the place of those that a document has.
fn publish(file: &Path, members: &Value) {
    let document = std::fs::read_to_string(file).expect("reads");
    let mut document: Value = serde_json::from_str(&document).expect("JSON");
    for (name, value) in members.as_object().expect("members") {
        document[name] = value.clone();
    }
    let next = file.with_extension("next");
    std::fs::write(&next, document.to_string()).expect("writes");
    std::fs::rename(next, file).expect("renames");
}

#[test]
#[allow(clippy::too_many_lines, reason = "one story, told in its order")]
fn restore_web() {
    let began = Instant::now();
    let sandbox = Sandbox::up_as(&["--with", "pds,plc", "--pds", "2"]);
    let file = sandbox.folder().join("did.json");
    let site = Site::start(file.clone());
    let did = format!("did:web:localhost%3A{}", site.port);
    // As it stands in a query.
    let asked = did.replace('%', "%25");
    sandbox.run(&[
        "account",
        "create",
        "--did",
        &did,
        "--handle",
        "webby",
        "--file",
        text(&file),
    ]);
    sandbox.note(&did, "n0", "a note");
    let firekeep = Firekeep::following(&sandbox, "data", &[0]);
    let mut running = firekeep.start();
    running.wait_filled(1);
    running.wait_caught_up(&sandbox);
    running.snapshot();
    running.stop();
    let (before, pictures) = (
        repository(&sandbox.pds_url(), &asked),
        blobs(&sandbox.pds_url(), &asked),
    );
    sandbox.stop("pds1");
    let archive = format!("file://{}", firekeep.archive().display());
    let (to, plc, password) = (
        sandbox.url_of(1),
        sandbox.plc_url(),
        sandbox.folder().join("password"),
    );
    std::fs::write(&password, "a-new-password").expect("writes");
    let state = sandbox.folder().join("state");
    let fixed = [
        "restore",
        "account",
        &did,
        "--from",
        &archive,
        "--to",
        &to,
        "--plc-url",
        &plc,
        "--dev-mode",
        "--yes",
    ];
    let more = [
        "--json",
        "--handle",
        "web-back.pds2.test",
        "--email",
        "w@mail.test",
        "--password-file",
        text(&password),
    ];
    let all = [&fixed[..], &more, &["--data-dir", text(&state)]].concat();
    let refused = firekeep.alone(&all);
    assert_eq!(refused.code, 1, "{}", refused.stderr);
    assert!(
        refused.stderr.contains("--signing-key-file"),
        "{}",
        refused.stderr
    );
    let key = sandbox.folder().join("owner.key");
    let made = firekeep.alone(&["key", "generate", "-o", text(&key), "--json"]);
    let made: Value = serde_json::from_str(&made.stdout).expect("JSON");
    let public = made["keys"][0]["did_key"]
        .as_str()
        .expect("a key")
        .trim_start_matches("did:key:");
    let with = [&all[..], &["--signing-key-file", text(&key)]].concat();
    let unpublished = firekeep.alone(&with);
    assert_eq!(unpublished.code, 1, "{}", unpublished.stderr);
    assert!(
        unpublished.stderr.contains("is not the account's signing key"),
        "{}",
        unpublished.stderr
    );
    let method = serde_json::json!([{
        "id": format!("{did}#atproto"), "type": "Multikey", "controller": did, "publicKeyMultibase": public,
    }]);
    publish(&file, &serde_json::json!({ "verificationMethod": method }));
    let mut command = firekeep.command();
    command.args(&with).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("firekeep starts");
    let mut lines = BufReader::new(child.stderr.take().expect("piped"))
        .lines()
        .map_while(Result::ok);
    let mut said = String::new();
    // What is to be published stands after that line, as JSON.
    for line in lines.by_ref() {
        said.push_str(&line);
        said.push('\n');
        if line.contains("must now publish") {
            break;
        }
    }
    assert!(said.contains("must now publish"), "{said}");
    let mut members = String::new();
    for line in lines.by_ref() {
        members.push_str(&line);
        if line == "}" {
            break;
        }
    }
    let status = http::get(
        &to,
        &format!(
            "/xrpc/com.atproto.sync.getRepoStatus?did={}",
            did.replace('%', "%25")
        ),
    );
    assert_eq!(
        status.expect("answers").json()["active"],
        false,
        "not before its owner has published it"
    );
    publish(&file, &serde_json::from_str(&members).expect("JSON"));
    let rest: Vec<String> = lines.collect();
    let mut out = String::new();
    child
        .stdout
        .take()
        .expect("piped")
        .read_to_string(&mut out)
        .expect("reads");
    let code = child.wait().expect("it ends").code();
    assert_eq!(code, Some(0), "{out}{}", rest.join("\n"));
    let now = repository(&to, &asked);
    let (old, new) = (blocks(&before), blocks(&now));
    assert_eq!(
        (old.difference(&new).count(), new.difference(&old).count()),
        (2, 2)
    );
    assert_eq!(blobs(&to, &asked), pictures);
    report(
        "restore_web",
        began,
        "a did:web is back, after its owner had published what he was told to",
    );
}
