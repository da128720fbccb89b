//! What an archive gives by itself: no mirror, no daemon.

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde_json::Value;

use super::firekeep::Firekeep;
use super::http;
use super::sandbox::Sandbox;

/// An archive, asked through the commands that need nothing else.
pub struct Alone<'a> {
    firekeep: &'a Firekeep,
    source: Vec<String>,
    out: PathBuf,
}

impl<'a> Alone<'a> {
    /// `source` are the flags that name the archive.
    pub fn new(sandbox: &Sandbox, firekeep: &'a Firekeep, source: &[&str]) -> Self {
        Self {
            firekeep,
            source: source.iter().map(|text| (*text).to_owned()).collect(),
            out: sandbox.folder().join("out"),
        }
    }

    /// A command's exit code, and the JSON that it printed.
    fn ask(&self, arguments: &[&str]) -> (i32, Value) {
        let source: Vec<&str> = self.source.iter().map(String::as_str).collect();
        let done = self.firekeep.ask(&[arguments, &source].concat());
        let told = serde_json::from_str(&done.stdout);
        let told = told.unwrap_or_else(|_| panic!("{arguments:?}: {}{}", done.stdout, done.stderr));
        (done.code, told)
    }

    fn export(&self, did: &str, more: &[&str]) -> (i32, Value, Vec<u8>) {
        let file = self.out.to_str().expect("UTF-8");
        let (code, told) = self.ask(&[&["export", did, "-o", file, "--json", "--force"], more].concat());
        (code, told, std::fs::read(&self.out).expect("the export"))
    }

    /// The CAR of an account's newest state; its rev.
    pub fn car(&self, did: &str) -> (String, Vec<u8>) {
        let (code, told, car) = self.export(did, &[]);
        assert_eq!(code, 0, "export of {did}: {told}");
        (told["rev"].as_str().expect("a rev").to_owned(), car)
    }
}

/// What a PDS, or a mirror, at this address says that an account holds.
pub fn repository(url: &str, did: &str) -> Vec<u8> {
    let path = format!("/xrpc/com.atproto.sync.getRepo?did={did}");
    let answer = http::get(url, &path).expect("it answers");
    assert_eq!(answer.status, 200);
    answer.body
}

/// A CAR's header and blocks, in no order: what stands behind each length.
pub fn blocks(car: &[u8]) -> BTreeSet<&[u8]> {
    let (mut found, mut rest) = (BTreeSet::new(), car);
    while !rest.is_empty() {
        let (mut length, mut shift) = (0, 0);
        loop {
            let (byte, after) = rest.split_first().expect("a length");
            rest = after;
            length |= usize::from(byte & 0x7f) << shift;
            shift += 7;
            if byte & 0x80 == 0 {
                break;
            }
        }
        let (block, after) = rest.split_at(length);
        found.insert(block);
        rest = after;
    }
    found
}
