//! What is special about verifying a folder, and the command itself.

use std::process::{Command, Output};

use firekeep::archive::scrub::Report;

use super::archive::{Objects, fill, replace, sample};
use super::open_folder;
use super::verify::bombs;

fn firekeep(folder: &std::path::Path, more: &[&str]) -> Output {
    let url = format!("file://{}", folder.display());
    let mut command = Command::new(env!("CARGO_BIN_EXE_firekeep"));
    command
        .current_dir(folder)
        .args(["verify", "--archive", &url])
        .args(more);
    command.output().expect("starts")
}

async fn filled() -> (tempfile::TempDir, Objects) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let objects = sample();
    fill(&open_folder(folder.path()).await, &objects).await;
    (folder, objects)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[tokio::test]
async fn the_command_says_what_it_checked_and_exits_accordingly() {
    let empty = tempfile::tempdir().expect("a temporary folder");
    let out = firekeep(empty.path(), &[]);
    assert_eq!(out.status.code(), Some(10), "{}", text(&out.stderr));

    let (folder, objects) = filled().await;
    let out = firekeep(folder.path(), &[]);
    assert_eq!(out.status.code(), Some(0), "{}", text(&out.stderr));
    assert!(
        text(&out.stdout).contains("8 of 8 read and sound"),
        "{}",
        text(&out.stdout)
    );

    let name = objects
        .keys()
        .find(|name| name.contains("/blocks/"))
        .expect("a blob");
    std::fs::write(folder.path().join(name), b"other").expect("writes");
    let resume = folder.path().join("how-far.json");
    let resume = resume.to_str().expect("UTF-8");
    let out = firekeep(folder.path(), &["--json", "--resume", resume, "--rate", "100MiB"]);
    assert_eq!(out.status.code(), Some(4), "{}", text(&out.stderr));
    let report: serde_json::Value = serde_json::from_slice(&out.stdout).expect("JSON");
    assert_eq!(report["findings"]["kept"][0]["object"], name.as_str());
    assert_eq!(report["findings"]["counts"]["damaged"], 1);
    assert!(
        !std::path::Path::new(resume).exists(),
        "done: nothing to go on with"
    );

    std::fs::write(resume, b"{}").expect("writes");
    let out = firekeep(folder.path(), &["--resume", resume]);
    assert_eq!(out.status.code(), Some(1));
    assert!(
        text(&out.stderr).contains("no checkpoint of this version"),
        "{}",
        text(&out.stderr)
    );
    let out = firekeep(folder.path(), &["--sample", "200%"]);
    assert_eq!(out.status.code(), Some(78));
}

/// In an address space that the threads' own stacks and arenas nearly fill.
#[tokio::test]
async fn bombs_need_no_memory() {
    let (folder, objects) = filled().await;
    let bucket = open_folder(folder.path()).await;
    let names: Vec<&String> = objects.keys().filter(|name| name.contains("/repos/")).collect();
    for ((_, bomb), name) in bombs().iter().zip(&names) {
        replace(&bucket, name, bomb).await;
    }
    let url = format!("file://{}", folder.path().display());
    let script = format!(
        "ulimit -v 1200000; exec {} verify --archive {url}",
        env!("CARGO_BIN_EXE_firekeep")
    );
    let out = Command::new("sh")
        .args(["-c", &script])
        .current_dir(&folder)
        .output()
        .expect("starts");
    assert_eq!(
        out.status.code(),
        Some(4),
        "{}{}",
        text(&out.stdout),
        text(&out.stderr)
    );
    let said = text(&out.stdout);
    for name in names.iter().take(bombs().len()) {
        assert!(said.contains(name.as_str()), "{name} in {said}");
    }
}

/// A folder keeps no digest: every bit that means something is noticed all the same.
#[tokio::test]
async fn nearly_every_bit_of_a_snapshot_and_a_segment_is_noticed_in_a_folder() {
    use firekeep::archive::snapshot_file::SnapshotDecoder;
    use std::io::Read as _;
    let (folder, objects) = filled().await;
    let bucket = open_folder(folder.path()).await;
    let unpack = |bytes: &[u8]| {
        let mut content = Vec::new();
        let mut decoder = SnapshotDecoder::new(bytes, 1 << 20).expect("memory");
        decoder.read_to_end(&mut content).ok().map(|_| content)
    };
    let mut harmless = 0;
    let last = |part: &str| objects.keys().rfind(|name| name.contains(part)).expect("one");
    for name in [last("/log/"), last("/repos/")] {
        let sound = &objects[name];
        // The whole head of the frame, then some of the rest.
        for bit in (0..sound.len() * 8).filter(|bit| *bit < 80 || bit % 61 == 0) {
            let mut bad = sound.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            replace(&bucket, name, &bad).await;
            let report: Report = super::verify::run(&bucket, super::verify::ALL).await;
            if report.exit_code() != 4 {
                assert_eq!(unpack(&bad), unpack(sound), "{name}, bit {bit}");
                harmless += 1;
            }
        }
        replace(&bucket, name, sound).await;
    }
    assert!(harmless <= 8, "{harmless} flipped bits went unnoticed");
}
