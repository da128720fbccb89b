//! A real S3 server, shared by the tests that run at the same time, stopped with the last of them.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use firekeep::archive::bucket::Bucket;
use firekeep::archive::settings::{ArchiveConfig, S3Input};

/// The server, and how to reach it.
pub struct Server {
    script: PathBuf,
    folder: tempfile::TempDir,
    pub bucket: String,
    pub input: S3Input,
}

impl Server {
    /// Opens the server's bucket under a prefix of its own.
    pub async fn open(&self, prefix: &str) -> Bucket {
        let url = format!("s3://{}/test/{prefix}", self.bucket);
        let config = ArchiveConfig::parse(&url, &self.input).expect("valid");
        Bucket::open(&config).await.expect("opens")
    }

    /// A folder without anybody's settings.
    pub fn home(&self) -> &str {
        self.folder.path().to_str().expect("UTF-8")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let down = sandbox(&self.script, "down", self.folder.path(), &[]);
        eprintln!("sandbox down: {}", if down.is_some() { "done" } else { "failed" });
    }
}

/// The server; `None`, and a line that says so, if there is no sandbox here.
pub fn running() -> Option<Arc<Server>> {
    static SERVER: Mutex<Weak<Server>> = Mutex::new(Weak::new());
    let mut shared = SERVER.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(server) = shared.upgrade() {
        return Some(server);
    }
    let server = Arc::new(start()?);
    *shared = Arc::downgrade(&server);
    Some(server)
}

fn start() -> Option<Server> {
    let default = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/sandbox/sandbox");
    let script = std::env::var_os("FIREKEEP_SANDBOX").map_or(default, PathBuf::from);
    if !script.exists() {
        // Not by a macro: what those print is shown only when a test fails.
        let line = format!(
            "SKIPPED: the S3 tests need the sandbox, and there is no {}\n",
            script.display()
        );
        std::io::stderr()
            .write_all(line.as_bytes())
            .expect("standard error");
        let required = std::env::var_os("FIREKEEP_REQUIRE_SANDBOX").is_some_and(|value| value == "1");
        assert!(
            !required,
            "FIREKEEP_REQUIRE_SANDBOX is set, and there is no sandbox"
        );
        return None;
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let up = sandbox(&script, "up", folder.path(), &["--with", "s3"]).expect("the sandbox starts");
    let known: serde_json::Value = serde_json::from_slice(&up).expect("JSON");
    let field = |name: &str| known["s3"][name].as_str().expect("a text").to_owned();
    let secret_file = |name: &str| {
        let path = folder.path().join(format!("{name}.txt"));
        std::fs::write(&path, field(name) + "\n").expect("writes");
        Some(path)
    };
    let input = S3Input {
        endpoint: Some(field("endpoint")),
        region: Some(field("region")),
        access_key_id_file: secret_file("access_key"),
        secret_access_key_file: secret_file("secret_key"),
        ..S3Input::default()
    };
    let bucket = field("bucket");
    Some(Server {
        script,
        folder,
        bucket,
        input,
    })
}

/// Runs the sandbox's script; gives back what it prints.
fn sandbox(script: &Path, command: &str, folder: &Path, more: &[&str]) -> Option<Vec<u8>> {
    let output = Command::new(script)
        .arg(command)
        .arg("--dir")
        .arg(folder)
        .args(more)
        .output()
        .expect("the script starts");
    if !output.status.success() {
        eprintln!("{}", String::from_utf8_lossy(&output.stderr));
        return None;
    }
    Some(output.stdout)
}
