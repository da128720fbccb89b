//! What is special about S3, against the real server.

use aws_sdk_s3::Client;
use aws_sdk_s3::config::{BehaviorVersion, Credentials, Region};
use firekeep::archive::bucket::{Body, Bucket, BucketError, BucketErrorKind, PutOptions};
use firekeep::archive::content_type::ContentType;
use firekeep::archive::settings::ArchiveConfig;
use firekeep::types::Timestamp;

use super::server::{self, Server};

pub async fn open(url: &str, server: &Server, endpoint: Option<&str>) -> Bucket {
    let mut input = server.input.clone();
    if let Some(endpoint) = endpoint {
        input.endpoint = Some(endpoint.to_owned());
    }
    let config = ArchiveConfig::parse(url, &input).expect("valid");
    Bucket::open(&config).await.expect("opens")
}

/// Every operation, and how it failed.
async fn errors(bucket: &Bucket) -> Vec<BucketError> {
    let options = PutOptions::create(ContentType::binary());
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    file.as_file().set_len(17 << 20).expect("room");
    vec![
        bucket
            .put("v1/x", Body::Bytes("x".into()), &options)
            .await
            .map(drop)
            .expect_err("put"),
        bucket
            .put("v1/x", Body::File(file.path().into()), &options)
            .await
            .map(drop)
            .expect_err("parts"),
        bucket.get("v1/x").await.map(drop).expect_err("get"),
        bucket.head("v1/x").await.map(drop).expect_err("head"),
        bucket.list("", None).await.map(drop).expect_err("list"),
        bucket.delete("v1/x").await.expect_err("delete"),
        bucket
            .clean_up(Some(Timestamp::default()))
            .await
            .map(drop)
            .expect_err("clean up"),
    ]
}

#[tokio::test]
async fn a_missing_bucket_is_told_from_a_missing_object() {
    let Some(server) = server::running() else { return };
    let bucket = open("s3://no-such-bucket/x", &server, None).await;
    for error in errors(&bucket).await {
        assert_eq!(error.kind, BucketErrorKind::NoBucket, "{error}");
        assert!(error.to_string().contains("s3://no-such-bucket/x/"), "{error}");
        assert!(
            error.to_string().ends_with("(Firekeep makes no buckets)"),
            "{error}"
        );
        assert!(!error.is_transient());
    }
}

#[tokio::test]
async fn a_wrong_endpoint_is_unreachable() {
    let Some(server) = server::running() else { return };
    // A port that was free a moment ago.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound");
    drop(listener);
    let bucket = open("s3://firekeep/x", &server, Some(&format!("http://{address}"))).await;
    for error in errors(&bucket).await {
        assert_eq!(error.kind, BucketErrorKind::Unreachable, "{error}");
        assert!(
            error.to_string().contains("refused") && !error.to_string().contains('\n'),
            "{error}"
        );
        assert!(error.is_transient());
    }
}

pub fn client(server: &Server) -> Client {
    let read = |path: &Option<std::path::PathBuf>| {
        let path = path.as_ref().expect("set");
        std::fs::read_to_string(path).expect("readable").trim().to_owned()
    };
    let id = read(&server.input.access_key_id_file);
    let secret = read(&server.input.secret_access_key_file);
    let config = aws_sdk_s3::Config::builder()
        .behavior_version(BehaviorVersion::v2026_01_12())
        .region(Region::new("us-east-1"))
        .endpoint_url(server.input.endpoint.as_ref().expect("set"))
        .credentials_provider(Credentials::new(id, secret, None, None, "test"))
        .force_path_style(true)
        .build();
    Client::from_conf(config)
}

#[tokio::test]
async fn uploads_left_behind_are_aborted_when_old_and_ours() {
    let Some(server) = server::running() else { return };
    let (bucket, client) = (server.open("leftovers").await, client(&server));
    let begin = |key: &'static str| {
        let (client, bucket) = (client.clone(), server.bucket.clone());
        async move {
            let upload = client
                .create_multipart_upload()
                .bucket(bucket)
                .key(key)
                .send()
                .await;
            upload.expect("begins").upload_id.expect("has an id")
        }
    };
    let ours = begin("test/leftovers/v1/repos/x").await;
    let also_ours = begin("test/leftovers/v1/repos/y").await;
    let other = begin("test/leftovers-of-others/x").await;

    let uploads = || async {
        let page = client
            .list_multipart_uploads()
            .bucket(&server.bucket)
            .prefix("test/leftovers")
            .send()
            .await;
        let uploads = page.expect("lists").uploads.unwrap_or_default();
        let began = uploads
            .first()
            .and_then(|upload| upload.initiated)
            .map(|began| began.secs());
        let ids: Vec<_> = uploads
            .into_iter()
            .filter_map(|upload| upload.upload_id)
            .collect();
        (ids, began)
    };
    let (ids, began) = uploads().await;
    assert_eq!(ids.len(), 3);
    let began = u64::try_from(began.expect("a time")).expect("after 1970") * 1_000_000;
    let (hour, began) = (3_600_000_000, Timestamp::from_micros(began).micros());
    assert_eq!(
        bucket
            .clean_up(Some(Timestamp::from_micros(began + 23 * hour)))
            .await,
        Ok(Some(0))
    );
    assert_eq!(uploads().await.0.len(), 3);
    assert_eq!(
        bucket
            .clean_up(Some(Timestamp::from_micros(began + 25 * hour)))
            .await,
        Ok(Some(2))
    );
    assert_eq!(uploads().await.0, std::slice::from_ref(&other));
    assert!(ours != also_ours);
    // When bytes must be gone, one goes however young.
    begin("test/leftovers/v1/repos/z").await;
    assert_eq!(bucket.clean_up(None).await, Ok(Some(1)));
    assert_eq!(bucket.clean_up(None).await, Ok(Some(0)));
    assert_eq!(uploads().await.0, [other]);
}

#[tokio::test]
async fn an_upload_that_fails_leaves_nothing_behind() {
    let Some(server) = server::running() else { return };
    let (bucket, client) = (server.open("failed").await, client(&server));
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    file.as_file().set_len(17 << 20).expect("room");
    let mut options = PutOptions::create(ContentType::binary());
    options.sha256 = Some([1; 32]);
    let error = bucket
        .put("v1/x", Body::File(file.path().into()), &options)
        .await
        .expect_err("other bytes");
    assert_eq!(error.kind, BucketErrorKind::Corrupt);
    let page = client
        .list_multipart_uploads()
        .bucket(&server.bucket)
        .prefix("test/failed")
        .send()
        .await;
    assert_eq!(page.expect("lists").uploads.unwrap_or_default().len(), 0);
}

#[tokio::test]
async fn archives_under_other_prefixes_are_not_seen() {
    let Some(server) = server::running() else { return };
    let (one, other) = (server.open("prefix").await, server.open("prefix-other").await);
    let options = PutOptions::create(ContentType::binary());
    let put = other.put("v1/x", Body::Bytes("x".into()), &options).await;
    assert!(put.is_ok());
    assert_eq!(one.list("", None).await.expect("readable").objects, []);
    assert_eq!(one.head("v1/x").await, Ok(None));
    assert!(one.to_string().ends_with("/test/prefix"));
}

/// Runs one test of this binary again, in another process with another environment.
fn run_again(test: &str, environment: &[(&str, &str)]) {
    let binary = std::env::current_exe().expect("this binary");
    let name = format!("own::{test}");
    let mut command = std::process::Command::new(binary);
    command.args(["--exact", &name, "--nocapture"]).env_clear();
    let output = command
        .envs(environment.iter().copied())
        .output()
        .expect("starts");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{environment:?}: {text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Credentials and region from the standard places, as far as they can be tried here.
#[tokio::test]
async fn what_is_not_set_comes_from_the_environment() {
    const TEST: &str = "what_is_not_set_comes_from_the_environment";
    let Ok(role) = std::env::var("FIREKEEP_TEST_ROLE") else {
        let Some(server) = server::running() else { return };
        let secret = |path: &Option<std::path::PathBuf>| {
            let path = path.as_ref().expect("set");
            std::fs::read_to_string(path).expect("readable").trim().to_owned()
        };
        let id = secret(&server.input.access_key_id_file);
        let key = secret(&server.input.secret_access_key_file);
        let endpoint = server.input.endpoint.as_deref().expect("set");
        let no_files = ("HOME", server.home());
        // Nothing asks the address of a cloud's own machines.
        let no_cloud = ("AWS_EC2_METADATA_DISABLED", "true");
        let both = [
            ("AWS_ACCESS_KEY_ID", &*id),
            ("AWS_SECRET_ACCESS_KEY", &*key),
            no_files,
            no_cloud,
        ];
        let with_role = |more: &[(&'static str, &str)], role| {
            let role = [
                ("FIREKEEP_TEST_ROLE", role),
                ("ENDPOINT", endpoint),
                ("BUCKET", &*server.bucket),
            ];
            run_again(TEST, &[&both[..], &role, more].concat());
        };
        with_role(&[], "sound");
        with_role(
            &[("AWS_ENDPOINT_URL", endpoint), ("AWS_REGION", "eu-west-1")],
            "no endpoint set",
        );
        with_role(&[], "no region");
        with_role(
            &[("AWS_ACCESS_KEY_ID", ""), ("AWS_SECRET_ACCESS_KEY", "")],
            "no credentials",
        );
        return;
    };
    let variable = |name: &str| std::env::var(name).expect("set by the other process");
    let url = format!("s3://{}/environment", variable("BUCKET"));
    let mut input = firekeep::archive::settings::S3Input {
        path_style: Some(true),
        ..Default::default()
    };
    if !matches!(&*role, "no region" | "no endpoint set") {
        input.endpoint = Some(variable("ENDPOINT"));
    }
    let opened = Bucket::open(&ArchiveConfig::parse(&url, &input).expect("valid")).await;
    if role == "no region" {
        let error = opened.expect_err("cannot know one");
        assert_eq!(error.kind, BucketErrorKind::Setting, "{error}");
        assert!(error.to_string().contains("set s3.region"), "{error}");
        return;
    }
    let listed = opened.expect("opens").list("", None).await;
    if role == "no credentials" {
        let error = listed.expect_err("has none");
        assert_eq!(error.kind, BucketErrorKind::Credentials, "{error}");
    } else {
        assert_eq!(listed.expect("readable").objects, []);
    }
}
