//! What is special about folders. What they share with S3 is in `tests/s3_bucket/`.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::process::Command;
use std::time::Duration;

use bytes::Bytes;

use super::super::bucket::Bucket;
use super::super::content_type::ContentType;
use super::*;

/// An archive in a folder of its own.
struct Fixture {
    bucket: Bucket,
    root: PathBuf,
    _keep: tempfile::TempDir,
}

impl Fixture {
    async fn new() -> Self {
        let keep = tempfile::tempdir().expect("a temporary folder");
        let root = keep.path().join("archive");
        let bucket = Bucket::Folder(FolderBucket::open(&root).await.expect("opens"));
        Self {
            bucket,
            root,
            _keep: keep,
        }
    }

    async fn put(&self, name: &str, bytes: &[u8], kind: &str) -> Result<PutOutcome, BucketError> {
        let options = PutOptions::create(kind.parse().expect("a type"));
        let body = Body::Bytes(Bytes::copy_from_slice(bytes));
        self.bucket.put(name, body, &options).await
    }

    async fn kind(&self, name: &str) -> String {
        let head = self.bucket.head(name).await.expect("readable").expect("there");
        head.content_type.to_string()
    }

    async fn list(&self) -> Vec<String> {
        let page = self.bucket.list("", None).await.expect("readable");
        page.objects.into_iter().map(|object| object.name).collect()
    }

    fn files(&self, folder: &str) -> usize {
        fs::read_dir(self.root.join(folder)).map_or(0, Iterator::count)
    }
}

const BLOB: &str = "v1/blocks/did:plc:a/bafy";
const PNG: &[u8] = b"\x89PNG\r\n\x1a\n...";

#[tokio::test]
async fn objects_are_plain_files_that_only_we_can_read() {
    let fixture = Fixture::new().await;
    assert_eq!(fixture.put(BLOB, PNG, "image/png").await, Ok(PutOutcome::Created));
    let path = fixture.root.join(BLOB);
    assert_eq!(fs::read(&path).expect("there"), PNG);
    let found = fs::metadata(&path).expect("there");
    assert_eq!((found.mode() & 0o777, found.nlink()), (0o600, 1));
    let above = fs::metadata(path.parent().expect("a folder")).expect("there");
    assert_eq!(above.mode() & 0o777, 0o700);
    assert_eq!(fixture.files("v1/.tmp"), 0, "nothing unfinished stays");
}

#[tokio::test]
async fn leftovers_of_a_crash_are_ignored_and_removed_when_old() {
    let fixture = Fixture::new().await;
    fixture.put(BLOB, PNG, "image/png").await.expect("writes");
    // As a process of our own id left it: the first name that we would take.
    let leftover = fixture.root.join(format!("v1/.tmp/{}-1", std::process::id()));
    fs::write(&leftover, "half an obj").expect("writes");
    assert_eq!(fixture.list().await, [BLOB]);
    assert_eq!(
        fixture.put("v1/a", b"a", "text/plain").await,
        Ok(PutOutcome::Created)
    );
    assert_eq!(fs::read(&leftover).expect("untouched"), b"half an obj");

    let modified = fs::metadata(&leftover)
        .and_then(|found| found.modified())
        .expect("there");
    let modified = modified
        .duration_since(std::time::UNIX_EPOCH)
        .expect("after 1970");
    let written = Timestamp::default().plus(modified);
    let day = Duration::from_secs(24 * 60 * 60);
    assert_eq!(
        fixture.bucket.clean_up(Some(written.plus(day))).await,
        Ok(Some(0))
    );
    assert_eq!(
        fixture
            .bucket
            .clean_up(Some(written.plus(day + Duration::from_secs(1))))
            .await,
        Ok(Some(1))
    );
    assert!(!leftover.exists());
    assert_eq!(
        fixture.bucket.clean_up(Some(written.plus(day * 2))).await,
        Ok(Some(0))
    );
    assert_eq!(fixture.list().await, ["v1/a", BLOB]);
}

#[tokio::test]
async fn what_must_be_gone_goes_however_young_and_what_is_written_now_stays() {
    let fixture = Fixture::new().await;
    fixture.put(BLOB, PNG, "image/png").await.expect("writes");
    let leftover = fixture.root.join(format!("v1/.tmp/{}-77", std::process::id()));
    fs::write(&leftover, "half an obj").expect("writes");
    let of_another = fixture.root.join("v1/.tmp/1-1");
    fs::write(&of_another, "another half").expect("writes");
    // Writers at work lose nothing by it.
    let writers = async {
        for number in 0..200 {
            let name = format!("v1/n{number}");
            let put = fixture.put(&name, &[7; 100_000], "text/plain").await;
            assert_eq!(put, Ok(PutOutcome::Created));
        }
    };
    let cleaner = async {
        let mut removed = 0;
        for _ in 0..200 {
            removed += fixture
                .bucket
                .clean_up(None)
                .await
                .expect("cleans")
                .expect("lists");
            tokio::task::yield_now().await;
        }
        removed
    };
    let ((), removed) = tokio::join!(writers, cleaner);
    assert_eq!(removed, 2);
    assert!(!leftover.exists() && !of_another.exists());
}

#[tokio::test]
async fn types_are_written_down_only_where_they_cannot_be_told() {
    let fixture = Fixture::new().await;
    let written = fixture.root.join("v1/types/blocks/did:plc:a/bafy");
    fixture.put(BLOB, PNG, "image/png").await.expect("writes");
    assert_eq!(fixture.kind(BLOB).await, "image/png");
    assert!(!written.exists());
    fixture.bucket.delete(BLOB).await.expect("deletes");

    fixture.put(BLOB, PNG, "image/x-odd").await.expect("writes");
    assert_eq!(
        fs::read_to_string(&written).expect("written down"),
        "image/x-odd\n"
    );
    assert_eq!(fixture.kind(BLOB).await, "image/x-odd");
    assert_eq!(fs::read(fixture.root.join(BLOB)).expect("there"), PNG);
    assert_eq!(fixture.list().await, [BLOB], "types are no objects");
    let page = fixture.bucket.list("v1/types/", None).await.expect("readable");
    assert_eq!(page.objects, []);

    // A type that makes no sense is as good as none.
    fs::write(&written, "not a type").expect("writes");
    assert_eq!(fixture.kind(BLOB).await, "image/png");
    fs::write(&written, b"\xff\xfe").expect("writes");
    assert_eq!(fixture.kind(BLOB).await, "image/png");
}

#[tokio::test]
async fn a_type_that_a_crash_left_does_not_stick() {
    let fixture = Fixture::new().await;
    let written = fixture.root.join("v1/types/blocks/did:plc:a/bafy");
    fs::create_dir_all(written.parent().expect("a folder")).expect("makes");
    fs::write(&written, "image/x-odd\n").expect("writes");
    fixture.put(BLOB, PNG, "image/png").await.expect("writes");
    assert_eq!(fixture.kind(BLOB).await, "image/png");
    assert!(!written.exists());
}

#[tokio::test]
async fn a_delete_leaves_nothing_behind() {
    let fixture = Fixture::new().await;
    fixture.put(BLOB, PNG, "image/x-odd").await.expect("writes");
    fixture
        .put("v1/blocks/did:plc:b/bafy", PNG, "image/png")
        .await
        .expect("writes");
    fixture.bucket.delete(BLOB).await.expect("deletes");
    fixture.bucket.delete(BLOB).await.expect("fine");
    assert!(!fixture.root.join("v1/blocks/did:plc:a").exists());
    assert!(!fixture.root.join("v1/types").exists());
    assert_eq!(fixture.list().await, ["v1/blocks/did:plc:b/bafy"]);
    fixture.put(BLOB, PNG, "image/png").await.expect("writes again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_put_survives_deletes_that_remove_its_folder() {
    let fixture = Fixture::new().await;
    let put = async {
        for n in 0..300 {
            let outcome = fixture.put(&format!("v1/d/e/{n}"), b"x", "text/plain").await;
            // Losing again and again is a conflict, to be tried again. Anything else is an error.
            if let Err(error) = outcome {
                assert_eq!(error.kind, BucketErrorKind::Conflict, "{error}");
            }
        }
    };
    let delete = async {
        for n in 0..600 {
            fixture
                .bucket
                .delete(&format!("v1/d/e/{}", n / 2))
                .await
                .expect("deletes");
        }
    };
    tokio::join!(put, delete);
}

#[tokio::test]
async fn symbolic_links_are_refused_everywhere() {
    let fixture = Fixture::new().await;
    let outside = tempfile::tempdir().expect("a temporary folder");
    fs::write(outside.path().join("bafy"), "secret").expect("writes");
    fixture.put("v1/a", b"a", "text/plain").await.expect("writes");
    fs::create_dir_all(fixture.root.join("v1/blocks")).expect("makes");
    let link =
        |to: &Path, name: &str| std::os::unix::fs::symlink(to, fixture.root.join(name)).expect("links");
    link(outside.path(), "v1/blocks/did:plc:a");
    link(&outside.path().join("bafy"), "v1/link");
    for name in [BLOB, "v1/link"] {
        let kind = |error: BucketError| error.kind;
        assert_eq!(
            fixture.bucket.get(name).await.err().map(kind),
            Some(BucketErrorKind::Symlink)
        );
        assert_eq!(
            fixture.bucket.head(name).await.map_err(kind),
            Err(BucketErrorKind::Symlink)
        );
        assert_eq!(
            fixture.bucket.delete(name).await.map_err(kind),
            Err(BucketErrorKind::Symlink)
        );
        let put = fixture.put(name, b"x", "text/plain").await;
        assert_eq!(put.map_err(kind), Err(BucketErrorKind::Symlink), "{name}");
    }
    for prefix in ["", "v1/blocks/did:plc:a/", "v1/l"] {
        let error = fixture
            .bucket
            .list(prefix, None)
            .await
            .expect_err("must not follow");
        assert_eq!(error.kind, BucketErrorKind::Symlink, "{prefix}");
    }
    assert_eq!(
        fs::read_dir(outside.path()).expect("readable").count(),
        1,
        "nothing was written outside"
    );
    // The root itself may be one.
    let elsewhere = outside.path().join("root");
    std::os::unix::fs::symlink(&fixture.root, &elsewhere).expect("links");
    let through = FolderBucket::open(&elsewhere).await.expect("opens");
    assert!(through.head("v1/a").await.expect("readable").is_some());
}

#[tokio::test]
async fn a_list_never_leaves_the_archive() {
    let fixture = Fixture::new().await;
    fixture.put("v1/a", b"a", "text/plain").await.expect("writes");
    for prefix in ["../", "/", "v1/../../", "./", "v1//", "v1/.tmp/", ".."] {
        let page = fixture.bucket.list(prefix, None).await.expect("readable");
        assert_eq!(page.objects, [], "{prefix}");
    }
}

#[tokio::test]
async fn what_is_no_folder_is_named() {
    let keep = tempfile::tempdir().expect("a temporary folder");
    let file = keep.path().join("file");
    fs::write(&file, "x").expect("writes");
    let error = FolderBucket::open(&file).await.expect_err("a file");
    assert_eq!(error.kind, BucketErrorKind::NotAFolder, "{error}");
    let error = FolderBucket::open(&file.join("archive"))
        .await
        .expect_err("below a file");
    assert_eq!(error.kind, BucketErrorKind::NotAFolder, "{error}");
    // A mount that is not there.
    let error = FolderBucket::open(&keep.path().join("mount/archive"))
        .await
        .expect_err("missing");
    assert_eq!(error.kind, BucketErrorKind::NotAFolder, "{error}");
    assert!(!keep.path().join("mount").exists());

    let fixture = Fixture::new().await;
    fixture.put("v1/a", b"a", "text/plain").await.expect("writes");
    let error = fixture
        .put("v1/a/b", b"b", "text/plain")
        .await
        .expect_err("below an object");
    assert_eq!(error.kind, BucketErrorKind::NotAFolder, "{error}");
    fixture.put("v1/c/d", b"d", "text/plain").await.expect("writes");
    let error = fixture.bucket.get("v1/c").await.expect_err("a folder");
    assert_eq!(error.kind, BucketErrorKind::NotAFolder, "{error}");
}

#[test]
fn errors_of_the_system_have_kinds() {
    use BucketErrorKind as K;
    for (code, want) in [
        (libc::EACCES, K::Refused),
        (libc::EROFS, K::Refused),
        (libc::ENOSPC, K::Full),
        (libc::EDQUOT, K::Full),
        (libc::ENOTDIR, K::NotAFolder),
        (libc::EFBIG, K::TooLarge),
        (libc::ESTALE, K::Unreachable),
        (libc::ETIMEDOUT, K::Unreachable),
        (libc::EIO, K::Other),
    ] {
        let error = io_error("write", Path::new("/x"), &io::Error::from_raw_os_error(code));
        assert_eq!(error.kind, want, "{error}");
    }
}

/// Runs one test of this binary again, in another process, behind a command that changes what it may do.
/// `None`: that command does not work here.
fn run_again(test: &str, wrapper: &[&str], probe: &[&str], role: &str) -> Option<bool> {
    let run = |arguments: &[&str]| Command::new(arguments[0]).args(&arguments[1..]).output();
    let works = run(&[wrapper, probe].concat()).is_ok_and(|output| output.status.success());
    if !works {
        return None;
    }
    let binary = std::env::current_exe().expect("this binary");
    let name = format!("archive::folder::tests::{test}");
    let mut command = Command::new(wrapper[0]);
    command
        .args(&wrapper[1..])
        .arg(binary)
        .args(["--exact", &name, "--nocapture"]);
    let output = command.env("FIREKEEP_TEST_ROLE", role).output().expect("starts");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    eprintln!("{text}{}", String::from_utf8_lossy(&output.stderr));
    Some(output.status.success() && text.contains("1 passed"))
}

fn skipped(what: &str) {
    // Not by a macro: what those print is shown only when a test fails.
    let line = format!("SKIPPED: {what}\n");
    io::Write::write_all(&mut io::stderr(), line.as_bytes()).expect("standard error");
    let required = std::env::var_os("FIREKEEP_REQUIRE_SANDBOX").is_some_and(|value| value == "1");
    assert!(!required, "must not be skipped: {what}");
}

/// As root everything is writable, so the test runs again without root's powers.
#[tokio::test]
async fn an_unwritable_folder_is_refused_with_its_name() {
    let fixture = Fixture::new().await;
    let set_mode = |mode| fs::set_permissions(&fixture.root, fs::Permissions::from_mode(mode)).expect("ours");
    set_mode(0o500);
    let outcome = fixture.put("v1/a", b"a", "text/plain").await;
    set_mode(0o700);
    match outcome {
        Err(error) => {
            assert_eq!(error.kind, BucketErrorKind::Refused);
            let text = error.to_string();
            assert!(
                text.contains("archive/v1: Permission denied") && text.contains("the right to"),
                "{text}"
            );
        }
        Ok(_) => {
            assert!(
                std::env::var_os("FIREKEEP_TEST_ROLE").is_none(),
                "root's powers are gone"
            );
            let wrapper = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"];
            match run_again(
                "an_unwritable_folder_is_refused_with_its_name",
                &wrapper,
                &["true"],
                "unprivileged",
            ) {
                Some(passed) => assert!(passed),
                None => skipped("setpriv does not work here, and root may write everywhere"),
            }
        }
    }
}

/// Runs again in a mount namespace of its own, on a file system of 256 KiB.
#[tokio::test]
async fn a_full_disk_is_told_and_leaves_no_half_object() {
    if std::env::var_os("FIREKEEP_TEST_ROLE").is_none() {
        let keep = tempfile::tempdir().expect("a temporary folder");
        let mount = format!(
            "mount -t tmpfs -o size=256k none {} && \"$@\"",
            keep.path().display()
        );
        let wrapper = ["unshare", "--map-root-user", "--mount", "sh", "-c", &mount, "sh"];
        let role = keep.path().to_str().expect("UTF-8");
        return match run_again(
            "a_full_disk_is_told_and_leaves_no_half_object",
            &wrapper,
            &["true"],
            role,
        ) {
            Some(passed) => assert!(passed),
            None => skipped("a file system of our own cannot be mounted here"),
        };
    }
    let mount = PathBuf::from(std::env::var_os("FIREKEEP_TEST_ROLE").expect("checked"));
    let bucket = Bucket::Folder(FolderBucket::open(&mount.join("archive")).await.expect("opens"));
    let options = PutOptions::create(ContentType::binary());
    let large = Body::Bytes(vec![1; 1 << 20].into());
    let error = bucket
        .put("v1/large", large, &options)
        .await
        .expect_err("no room");
    assert_eq!(error.kind, BucketErrorKind::Full, "{error}");
    assert!(!error.is_transient());
    assert_eq!(bucket.head("v1/large").await, Ok(None));
    let small = Body::Bytes(vec![1; 1 << 10].into());
    assert_eq!(
        bucket.put("v1/small", small, &options).await,
        Ok(PutOutcome::Created),
        "room again"
    );
}
