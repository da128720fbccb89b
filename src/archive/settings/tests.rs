//! Each setting that cannot be is refused with its key, its value and a remedy.

use super::*;

fn refused(archive: &str, change: impl FnOnce(&mut S3Input)) -> SettingError {
    let mut s3 = S3Input::default();
    change(&mut s3);
    ArchiveConfig::parse(archive, &s3).expect_err("must be refused")
}

const S3: &str = "s3://my-bucket/firekeep";

#[test]
fn folders_are_absolute_paths() {
    for (text, path) in [
        ("file:///srv/archive", "/srv/archive"),
        ("file:///srv/archive/", "/srv/archive"),
        ("file:///srv/two%20words%25", "/srv/two words%"),
        ("file:///srv/two words", "/srv/two words"),
    ] {
        let url = ArchiveUrl::parse(text).expect(text);
        assert_eq!(url, ArchiveUrl::Folder(PathBuf::from(path)));
        assert!(url.is_folder());
    }
    for text in [
        "file:///",
        "file://host/srv",
        "file://srv",
        "file:///srv/../etc",
        "file:///srv/%2e%2e/etc",
        "file:///srv/%zz",
        "file:///srv/%00",
        "file:///srv/%f",
        "file:///srv?x=y",
    ] {
        let error = refused(text, |_| ());
        assert_eq!((error.key, &*error.value), ("archive", text));
    }
}

#[test]
fn buckets_and_prefixes() {
    for (text, want) in [
        ("s3://my-bucket", ("my-bucket", "")),
        ("s3://my-bucket/", ("my-bucket", "")),
        ("s3://my-bucket/a/b", ("my-bucket", "a/b")),
        ("s3://my-bucket/a/b/", ("my-bucket", "a/b")),
    ] {
        let url = ArchiveUrl::parse(text).expect(text);
        let (bucket, prefix) = (want.0.to_owned(), want.1.to_owned());
        assert_eq!(url, ArchiveUrl::S3 { bucket, prefix });
        assert!(!url.is_folder());
        assert_eq!(url.to_string(), text.trim_end_matches('/'));
    }
    let long = format!("s3://my-bucket/{}", "a".repeat(256));
    for text in [
        "s3://",
        "s3:///a",
        "s3://ab",
        "s3://my bucket",
        "s3://my..bucket",
        "s3://.bucket",
        "s3://my-bucket//a",
        "s3://my-bucket/a//b",
        "s3://my-bucket/../a",
        "s3://my-bucket/a?b",
        "s3://key:secret@my-bucket",
        &long,
    ] {
        let error = refused(text, |_| ());
        assert_eq!((error.key, &*error.value), ("archive", text));
    }
}

#[test]
fn other_urls_are_refused_with_a_remedy() {
    assert_eq!(
        refused("/srv/archive", |_| ()).to_string(),
        "archive = \"/srv/archive\": is a path; write \"file:///srv/archive\""
    );
    for text in [
        "",
        "archive",
        "ftp://x",
        "S3://my-bucket",
        "https://s3.example.com/b",
    ] {
        assert!(
            refused(text, |_| ()).remedy.contains("s3://my-bucket/firekeep"),
            "{text}"
        );
    }
}

#[test]
fn defaults_fit_a_store_that_is_not_aws() {
    let plain = ArchiveConfig::parse(S3, &S3Input::default()).expect("valid").s3;
    assert_eq!(plain, S3Settings::default());
    assert!(!plain.path_style);
    let endpoint = Some("http://[::1]:9000/".to_owned());
    let own = ArchiveConfig::parse(
        S3,
        &S3Input {
            endpoint,
            ..S3Input::default()
        },
    )
    .expect("valid")
    .s3;
    assert_eq!(own.endpoint.as_deref(), Some("http://[::1]:9000"));
    assert!(own.path_style);
    assert_eq!(own.checksum, Checksum::WhenRequired);
}

#[test]
fn endpoints_are_scheme_host_and_port() {
    for text in [
        "https://s3.example.com",
        "http://127.0.0.1:9000",
        "https://[::1]",
        "http://a_b:1",
    ] {
        assert_eq!(check_endpoint(text), Ok(()), "{text}");
    }
    for text in [
        "",
        "s3.example.com",
        "ftp://s3.example.com",
        "https://",
        "https://:9000",
        "https://a b",
        "https://a/bucket",
        "https://a?x",
        "https://a:0",
        "https://a:65536",
        "https://a:",
    ] {
        let error = refused(S3, |s3| s3.endpoint = Some(text.to_owned()));
        assert_eq!((error.key, &*error.value), ("s3.endpoint", text));
    }
    let error = refused(S3, |s3| s3.endpoint = Some("https://me:hunter2@a".to_owned()));
    assert!(!error.to_string().contains("hunter2"), "{error}");
}

#[test]
fn credentials_come_in_pairs() {
    let file = || Some(PathBuf::from("/etc/firekeep/x"));
    assert_eq!(
        refused(S3, |s3| s3.access_key_id_file = file()).key,
        "s3.access_key_id_file"
    );
    assert_eq!(
        refused(S3, |s3| s3.secret_access_key_file = file()).key,
        "s3.secret_access_key_file"
    );
    assert_eq!(
        refused(S3, |s3| s3.session_token_file = file()).key,
        "s3.session_token_file"
    );
    let both = S3Input {
        access_key_id_file: file(),
        secret_access_key_file: file(),
        ..S3Input::default()
    };
    let parsed = ArchiveConfig::parse(S3, &both).expect("valid").s3.credentials;
    assert!(matches!(
        parsed,
        Credentials::Files {
            session_token: None,
            ..
        }
    ));
}

#[test]
fn the_rest_is_checked_too() {
    assert_eq!(
        refused(S3, |s3| s3.checksum = Some("crc32".into())).to_string(),
        "s3.checksum = \"crc32\": must be \"when_required\" (the default) or \"when_supported\""
    );
    assert_eq!(
        refused(S3, |s3| s3.region = Some("eu west".into())).key,
        "s3.region"
    );
    assert_eq!(refused(S3, |s3| s3.region = Some(String::new())).key, "s3.region");
    let zero = Some(Duration::ZERO);
    assert_eq!(
        refused(S3, |s3| s3.connect_timeout = zero).to_string(),
        "s3.connect_timeout = \"0ns\": must be 1 to 300 seconds"
    );
    assert_eq!(
        refused(S3, |s3| s3.attempt_timeout = zero).key,
        "s3.attempt_timeout"
    );
    assert_eq!(
        refused(S3, |s3| s3.idle_timeout = Some(Duration::MAX)).key,
        "s3.idle_timeout"
    );
}
