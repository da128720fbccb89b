//! What an admin is told: the page, `status` and metrics say the same, alarms reach a webhook, and a task that ends is
//! seen.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};

use serde_json::Value;

use crate::support::firekeep::{Firekeep, Running};
use crate::support::sandbox::Sandbox;
use crate::support::{http, wait_for};

/// Takes what is sent to it: paths, and bodies.
#[derive(Clone, Default)]
struct Receiver(Arc<Mutex<Vec<(String, String)>>>);

impl Receiver {
    /// Starts it; it ends with the test.
    fn start() -> (Self, String) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let this = Self::default();
        let kept = this.clone();
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let mut reader = BufReader::new(stream.try_clone().expect("a socket"));
                let (mut first, mut length) = (String::new(), 0);
                let mut line = String::new();
                while reader.read_line(&mut line).is_ok_and(|read| read > 2) {
                    if first.is_empty() {
                        first.clone_from(&line);
                    }
                    if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                        length = value.trim().parse().unwrap_or(0);
                    }
                    line.clear();
                }
                let mut body = vec![0; length];
                if reader.read_exact(&mut body).is_ok() {
                    let path = first.split(' ').nth(1).unwrap_or_default().to_owned();
                    let body = String::from_utf8_lossy(&body).into_owned();
                    kept.0.lock().expect("kept").push((path, body));
                }
                let _gone =
                    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
            }
        });
        (this, url)
    }

    fn at(&self, path: &str) -> Vec<String> {
        let all = self.0.lock().expect("kept");
        all.iter()
            .filter(|(known, _)| known == path)
            .map(|(_, body)| body.clone())
            .collect()
    }
}

/// The level, as each of the three tells it.
fn levels(running: &mut Running) -> (String, String, String) {
    let status = running.status().0;
    let level = status["protection"]["level"]
        .as_str()
        .expect("a level")
        .to_owned();
    let page = running.get("/").text();
    let shown = page
        .split("class=\"state ")
        .nth(1)
        .and_then(|rest| rest.split('"').next());
    let metrics = running.metrics();
    let all = ["protected", "mirrored", "empty", "catching_up", "at_risk"];
    let set: Vec<_> = all
        .into_iter()
        .filter(|state| metrics.count("firekeep_protection", &[("state", state)]) == 1)
        .collect();
    assert_eq!(
        metrics.count("firekeep_protected", &[]),
        u64::from(set == ["protected"])
    );
    (level, shown.unwrap_or("none").to_owned(), set.join(" "))
}

fn wait_level(running: &mut Running, want: &str) {
    wait_for(&format!("all three say {want}"), || {
        let told = levels(running);
        let same = [&told.0, &told.1, &told.2].iter().all(|level| *level == want);
        if same { Ok(()) } else { Err(told) }
    });
}

fn control(running: &Running, path: &str) -> Value {
    let answer = http::ask("POST", &running.admin_url(), path, "x-firekeep-control: 1\r\n");
    let answer = answer.expect("answers");
    assert_eq!(answer.status, 200, "{path}: {}", answer.text());
    answer.json()
}

#[test]
#[expect(clippy::too_many_lines, reason = "one PDS for all of it")]
fn an_admin_is_told() {
    let sandbox = Sandbox::up("pds,plc");
    sandbox.populate(3, 60, 6);
    let (told, url) = Receiver::start();
    let firekeep = Firekeep::new(&sandbox, "data")
        // Commands read the environment too, and http is for tests.
        .env("FIREKEEP_DEV_MODE", "true")
        .env("FIREKEEP_NOTIFY__WEBHOOK_URL", &format!("{url}/hook"))
        .env("FIREKEEP_NOTIFY__HEARTBEAT_URL", &format!("{url}/beat"));
    let mut running = firekeep.start();
    running.wait_filled(3);
    running.wait_caught_up(&sandbox);
    wait_level(&mut running, "catching_up");
    wait_for("a heartbeat", || told.at("/beat").pop().ok_or("none"));

    // With a trial restore and no reading of the archive it is still on its way; what is not off this machine is said.
    let drill = running.setup.ask(&["drill"]);
    assert_eq!(drill.code, 0, "{}", drill.stdout);
    let status = running.setup.ask(&["status"]);
    for part in [
        "protected?",
        "CATCHING UP",
        "off the box?",
        "ON THIS MACHINE",
        "could I restore?",
        "my bill?",
    ] {
        assert!(status.stdout.contains(part), "{part}: {}", status.stdout);
    }
    assert!(!status.stdout.contains("no trial restore"), "{}", status.stdout);

    // An account's page, by its DID and by the name of one that is not here.
    let did = sandbox.dids().remove(0);
    running.snapshot();
    let page = running.get(&format!("/account/{did}"));
    assert_eq!(page.status, 200);
    let page = page.text();
    for part in [
        "1 snapshot, 0 gaps",
        &format!(
            "firekeep restore account {did} --from {} --to",
            running.setup.url()
        ),
        &format!("curl -o {}.car", did.rsplit(':').next().expect("a name")),
    ] {
        assert!(page.contains(part), "{part}: {page}");
    }
    assert_eq!(running.get("/account/nobody.test").status, 404);
    // For whoever comes by a proxy there is no such page.
    let public =
        http::ask("GET", &running.setup.url(), "/", "x-forwarded-for: 192.0.2.1\r\n").expect("answers");
    assert!(!public.text().contains("Catching up") && public.text().contains("/xrpc/"));

    // Each task that ends is seen, in the metric and by whoever asks whether it is ready.
    let tasks = [
        "retain",
        "states",
        "prove",
        "resolve",
        "archive_link",
        "ship",
        "work",
        "follow",
        "subscribe",
    ];
    for task in tasks {
        let metrics = running.metrics();
        assert_eq!(metrics.count("firekeep_task_up", &[("task", task)]), 1, "{task}");
        let done = control(&running, &format!("/control/break-task?task={task}&how=end"));
        assert_eq!(done["broken"], 1, "{task}");
    }
    wait_for("all of them are missed", || {
        // Asking is looking: what shows metrics may be among those that ended.
        let seen = running.status().0;
        let metrics = running.metrics();
        let up: Vec<_> = tasks
            .into_iter()
            .filter(|task| metrics.count("firekeep_task_up", &[("task", task)]) != 0)
            .collect();
        if up.is_empty() { Ok(seen) } else { Err(up) }
    });
    let ready = http::get(&running.admin_url(), "/readyz").expect("answers");
    assert_eq!(
        (ready.status, ready.text().as_str()),
        (503, "a part of Firekeep has stopped or stands still\n")
    );
    assert_eq!(
        http::get(&running.admin_url(), "/livez").expect("answers").status,
        200
    );
    wait_level(&mut running, "at_risk");
    for task in ["serve", "apply", "measure", "notify"] {
        let up = running.metrics().count("firekeep_task_up", &[("task", task)]);
        assert_eq!(up, 1, "{task} goes on");
    }

    // It is an alarm, and the webhook hears of it.
    let body = wait_for("the webhook is told", || told.at("/hook").pop().ok_or("nothing"));
    let alarm: Value = serde_json::from_str(&body).expect("JSON");
    assert_eq!(
        (&alarm["type"], &alarm["kind"]),
        (&"firekeep.alarm".into(), &"task_stalled".into()),
        "{body}"
    );
    assert!(running.get("/").text().contains("task_stalled"));
    assert!(!running.log().contains("/hook"), "where alarms go is not logged");
}
