//! The parameters of a query: percent-decoded strictly, then parsed into types before anything is looked up.
//!
//! A parameter that this server does not know is passed over, for a later lexicon may add some. One that it
//! knows must be there once, well-formed and within its limits; the error names it and never repeats it.
//!
//! Source: <https://atproto.com/specs/xrpc>, the lexicons `com.atproto.sync.*`.

use std::str::FromStr;

use crate::identity::document::first_handle;
use crate::types::{Cid, Did, HostName, Nsid, RecordKey, RepoPath, Rev};

/// Most parameters that a query may have, known or not.
pub const PARAMS_MAX: usize = 64;
/// Largest page of a listing.
pub const PAGE_MAX: usize = 1000;
/// Page of a listing when no limit is given.
pub const PAGE_DEFAULT: usize = 500;

/// What is wrong with a query.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParamError {
    /// A `%` without two hexadecimal digits, or bytes that are no UTF-8.
    #[error("Query is not valid percent-encoded UTF-8")]
    Encoding,
    /// More than [`PARAMS_MAX`] parameters.
    #[error("Query has more than {PARAMS_MAX} parameters")]
    TooMany,
    /// Required and absent.
    #[error("Params must have the property \"{0}\"")]
    Missing(&'static str),
    /// Given more than once.
    #[error("{0} must be given once")]
    Twice(&'static str),
    /// Present and malformed.
    #[error("{name} must be {rule}")]
    Malformed {
        /// The parameter.
        name: &'static str,
        /// What it must be.
        rule: &'static str,
    },
}

/// A decoded query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Params(Vec<(String, String)>);

/// A handle, in lower case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Handle(pub String);

impl FromStr for Handle {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        const HANDLE_BYTES_MAX: usize = 253;
        let handle = first_handle([format!("at://{text}").as_str()]).ok_or(())?;
        (handle.len() <= HANDLE_BYTES_MAX)
            .then_some(Self(handle))
            .ok_or(())
    }
}

/// Which account is meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AtIdentifier {
    /// By its DID.
    Did(Did),
    /// By its handle.
    Handle(Handle),
}

impl FromStr for AtIdentifier {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text.parse() {
            Ok(did) => Ok(Self::Did(did)),
            Err(_) => text.parse().map(Self::Handle),
        }
    }
}

impl Params {
    /// Decodes what stands behind the `?` of a URI.
    ///
    /// # Errors
    /// [`ParamError::Encoding`], [`ParamError::TooMany`].
    pub fn parse(query: &str) -> Result<Self, ParamError> {
        let mut pairs = Vec::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            if pairs.len() == PARAMS_MAX {
                return Err(ParamError::TooMany);
            }
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            pairs.push((percent_decode(name)?, percent_decode(value)?));
        }
        Ok(Self(pairs))
    }

    /// The account: required.
    ///
    /// # Errors
    /// When it is absent, doubled or no DID.
    pub fn did(&self) -> Result<Did, ParamError> {
        self.required("did", "a valid did")
    }

    /// The blob: required.
    ///
    /// # Errors
    /// When it is absent, doubled or no CID in canonical text form.
    pub fn cid(&self) -> Result<Cid, ParamError> {
        self.required("cid", "a cid string")
    }

    /// Only what is newer than this rev.
    ///
    /// # Errors
    /// When it is doubled or no TID.
    pub fn since(&self) -> Result<Option<Rev>, ParamError> {
        self.optional("since", "a valid tid")
    }

    /// How many entries a page may have: [`PAGE_DEFAULT`] unless told otherwise.
    ///
    /// # Errors
    /// When it is doubled, or no number from 1 to [`PAGE_MAX`].
    pub fn limit(&self) -> Result<usize, ParamError> {
        self.number("limit", PAGE_DEFAULT, PAGE_MAX, "an integer from 1 to 1000")
    }

    /// The same for records, of which a page has fewer: 50 unless told otherwise.
    ///
    /// # Errors
    /// When it is doubled, or no number from 1 to 100.
    pub fn records_limit(&self) -> Result<usize, ParamError> {
        self.number("limit", 50, 100, "an integer from 1 to 100")
    }

    /// The same for hosts: 200 unless told otherwise.
    ///
    /// # Errors
    /// As [`Params::limit`].
    pub fn hosts_limit(&self) -> Result<usize, ParamError> {
        self.number("limit", 200, PAGE_MAX, "an integer from 1 to 1000")
    }

    fn number(
        &self,
        name: &'static str,
        default: usize,
        max: usize,
        rule: &'static str,
    ) -> Result<usize, ParamError> {
        match self.optional::<usize>(name, rule)? {
            Some(given) if !(1..=max).contains(&given) => Err(ParamError::Malformed { name, rule }),
            given => Ok(given.unwrap_or(default)),
        }
    }

    /// The account, by DID or handle: required.
    ///
    /// # Errors
    /// When it is absent, doubled or neither.
    pub fn repo(&self) -> Result<AtIdentifier, ParamError> {
        self.required("repo", "a valid did or a handle")
    }

    /// A handle: required.
    ///
    /// # Errors
    /// When it is absent, doubled or none.
    pub fn handle(&self) -> Result<Handle, ParamError> {
        self.required("handle", "a valid handle")
    }

    /// A collection: required.
    ///
    /// # Errors
    /// When it is absent, doubled or no NSID.
    pub fn collection(&self) -> Result<Nsid, ParamError> {
        self.required("collection", "a valid nsid")
    }

    /// A record's path, from its collection and key: both required.
    ///
    /// # Errors
    /// When one is absent, doubled or malformed, or both together are too long.
    pub fn path(&self) -> Result<RepoPath, ParamError> {
        let collection = self.collection()?;
        let rkey: RecordKey = self.required("rkey", "a valid record key")?;
        format!("{}/{}", collection.as_str(), rkey.as_str())
            .parse()
            .map_err(|_| ParamError::Malformed {
                name: "rkey",
                rule: "a valid record key",
            })
    }

    /// The version of a record.
    ///
    /// # Errors
    /// When it is doubled or no CID.
    pub fn record_cid(&self) -> Result<Option<Cid>, ParamError> {
        self.optional("cid", "a cid string")
    }

    /// Blocks: at least one.
    ///
    /// # Errors
    /// When there is none, or one is no CID.
    pub fn cids(&self) -> Result<Vec<Cid>, ParamError> {
        let name = "cids";
        let rule = "cid strings";
        let given = self.0.iter().filter(|(key, _)| key == name);
        let cids = given.map(|(_, text)| text.parse().map_err(|_| ParamError::Malformed { name, rule }));
        let cids: Vec<Cid> = cids.collect::<Result<_, _>>()?;
        if cids.is_empty() {
            return Err(ParamError::Missing(name));
        }
        Ok(cids)
    }

    /// A host: required.
    ///
    /// # Errors
    /// When it is absent, doubled or no host name.
    pub fn hostname(&self) -> Result<HostName, ParamError> {
        self.required("hostname", "a host name")
    }

    /// Whether the other order is meant.
    ///
    /// # Errors
    /// When it is doubled, or neither `true` nor `false`.
    pub fn reverse(&self) -> Result<bool, ParamError> {
        Ok(self.optional("reverse", "true or false")?.unwrap_or(false))
    }

    /// The account, where it need not be given.
    ///
    /// # Errors
    /// When it is doubled or no DID.
    pub fn did_if_given(&self) -> Result<Option<Did>, ParamError> {
        self.optional("did", "a valid did")
    }

    /// Where the page before ended.
    ///
    /// # Errors
    /// When it is doubled, or nothing that this server gave as a cursor.
    pub fn cursor<T: FromStr>(&self) -> Result<Option<T>, ParamError> {
        self.optional("cursor", "a cursor that this method returned")
    }

    /// A parameter of one of our own methods.
    ///
    /// # Errors
    /// When it is doubled or malformed.
    pub fn named<T: FromStr>(&self, name: &'static str, rule: &'static str) -> Result<Option<T>, ParamError> {
        self.optional(name, rule)
    }

    fn required<T: FromStr>(&self, name: &'static str, rule: &'static str) -> Result<T, ParamError> {
        self.optional(name, rule)?.ok_or(ParamError::Missing(name))
    }

    fn optional<T: FromStr>(&self, name: &'static str, rule: &'static str) -> Result<Option<T>, ParamError> {
        let mut values = self
            .0
            .iter()
            .filter(|(key, _)| key == name)
            .map(|(_, value)| value);
        let Some(value) = values.next() else {
            return Ok(None);
        };
        if values.next().is_some() {
            return Err(ParamError::Twice(name));
        }
        value
            .parse()
            .map(Some)
            .map_err(|_| ParamError::Malformed { name, rule })
    }
}

/// Decodes `application/x-www-form-urlencoded` text: `%XX` and `+`.
fn percent_decode(text: &str) -> Result<String, ParamError> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        out.push(match byte {
            b'%' => {
                let mut digit = || char::from(bytes.next()?).to_digit(16);
                let (high, low) = (digit(), digit());
                let value = high.zip(low).map(|(high, low)| high * 16 + low);
                value
                    .and_then(|value| u8::try_from(value).ok())
                    .ok_or(ParamError::Encoding)?
            }
            b'+' => b' ',
            other => other,
        });
    }
    String::from_utf8(out).map_err(|_| ParamError::Encoding)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DID: &str = "did:plc:ewvi7nxzyoun6zhxrhs64oiz";

    fn params(query: &str) -> Params {
        Params::parse(query).expect("decodes")
    }

    #[test]
    fn encoded_and_plain_texts_are_the_same() {
        let encoded = params("did=did%3Aplc%3Aewvi7nxzyoun6zhxrhs64oiz&&unknown&x=%F0%9F%A6%8B");
        assert_eq!(encoded.did(), params(&format!("did={DID}")).did());
        assert_eq!(encoded.limit(), Ok(PAGE_DEFAULT));
        assert_eq!(encoded.since(), Ok(None));
        assert_eq!(percent_decode("a+b%2B%2b"), Ok("a b++".to_owned()));
    }

    #[test]
    fn bad_encoding_is_refused_wherever_it_stands() {
        for query in [
            "did=%",
            "did=%4",
            "did=%zz",
            "%GG=1",
            "x=%ff",
            "x=%c3",
            "x=%+1",
            "x=%C0%AE%C0%AE",
        ] {
            assert_eq!(Params::parse(query), Err(ParamError::Encoding), "{query}");
        }
        let many = "a=1&".repeat(PARAMS_MAX);
        assert!(Params::parse(&many).is_ok());
        assert_eq!(Params::parse(&format!("{many}a=1")), Err(ParamError::TooMany));
    }

    #[test]
    fn a_known_parameter_must_be_there_once_and_well_formed() {
        let malformed = |name, rule| ParamError::Malformed { name, rule };
        assert_eq!(params("").did(), Err(ParamError::Missing("did")));
        assert_eq!(
            params(&format!("did={DID}&did={DID}")).did(),
            Err(ParamError::Twice("did"))
        );
        for did in [
            "",
            "x",
            "did:plc:..%2F..%2Fetc",
            "did:plc:a%00",
            "did:plc:a%20b",
            "did:plc:%25",
            "..%2f",
        ] {
            let got = params(&format!("did={did}")).did();
            assert_eq!(got, Err(malformed("did", "a valid did")), "{did}");
        }
        let cid = Cid::of_blob(b"x").to_string();
        assert_eq!(params(&format!("cid={cid}")).cid(), Ok(Cid::of_blob(b"x")));
        for cid in [
            "..%2F..%2Fpasswd",
            &cid.to_uppercase(),
            &format!("{cid}%00"),
            &format!("z{cid}"),
            "Qm",
        ] {
            let got = params(&format!("cid={cid}")).cid();
            assert_eq!(got, Err(malformed("cid", "a cid string")), "{cid}");
        }
        assert!(
            params("since=3jqfcqzm3fo2j")
                .since()
                .is_ok_and(|since| since.is_some())
        );
        assert_eq!(
            params("since=yesterday").since(),
            Err(malformed("since", "a valid tid"))
        );
        assert!(params("cursor=nonsense").cursor::<Did>().is_err());
    }

    #[test]
    fn limits_outside_the_lexicon_are_refused() {
        assert_eq!(params("limit=1").limit(), Ok(1));
        assert_eq!(params("limit=1000").limit(), Ok(1000));
        for limit in [
            "0",
            "1001",
            "-1",
            "1.5",
            "ten",
            "",
            "99999999999999999999999",
            "1e3",
        ] {
            assert!(params(&format!("limit={limit}")).limit().is_err(), "{limit}");
        }
    }

    #[test]
    fn an_error_never_repeats_what_was_sent() {
        let error = params("did=<script>").did().expect_err("malformed");
        assert_eq!(error.to_string(), "did must be a valid did");
    }
}
