//! How object names are written and read. One pair of functions for all kinds, so that the two cannot drift
//! apart: reading ends with writing again and comparing.

use super::*;

const QUARANTINED_ENDING: &str = ".car.quarantined.zst";
const BOUNDARY_ENDING: &str = ".boundary.json";
const EDITION: &str = ".erased-";

macro_rules! kinds {
    ($($kind:ident($name:ident) = $wanted:literal),* $(,)?) => {$(
        impl From<$name> for ObjectName {
            fn from(name: $name) -> Self {
                Self::$kind(name)
            }
        }

        impl FromStr for $name {
            type Err = NameError;

            fn from_str(text: &str) -> Result<Self, NameError> {
                match text.parse()? {
                    ObjectName::$kind(name) => Ok(name),
                    _ => Err(NameError::OtherKind { wanted: $wanted }),
                }
            }
        }
    )*};
}

kinds! {
    Writer(WriterName) = "writer's claim",
    Snapshot(SnapshotName) = "snapshot",
    Quarantined(QuarantinedName) = "quarantined repository",
    Delta(DeltaName) = "delta",
    Segment(SegmentName) = "segment",
    Boundary(BoundaryName) = "boundary",
    Blob(BlobName) = "blob",
    Identity(IdentityName) = "identity",
    HostState(HostStateName) = "host state",
    Service(ServiceName) = "service state",
    State(StateName) = "private state",
    Erased(ErasedName) = "note of an erasure",
}

impl fmt::Display for WriterName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "v1/writers/{}/{:020}.json", self.shard, self.generation)
    }
}

impl fmt::Display for SnapshotName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let commit = Cid::dag_cbor(self.commit);
        let edition = Edition(self.edition);
        write!(f, "{REPOS}{}/{}-{commit}{edition}.car.zst", self.did, self.rev)
    }
}

impl fmt::Display for QuarantinedName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let commit = Cid::dag_cbor(self.commit);
        let (did, rev, edition) = (&self.did, self.rev, Edition(self.edition));
        write!(f, "{REPOS}{did}/{rev}-{commit}{edition}{QUARANTINED_ENDING}")
    }
}

impl fmt::Display for DeltaName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let commit = Cid::dag_cbor(self.commit);
        let (did, from, to, edition) = (&self.did, self.from, self.to, Edition(self.edition));
        write!(f, "{REPOS}{did}/{from}..{to}-{commit}{edition}.delta.car.zst")
    }
}

impl fmt::Display for SegmentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (shard, generation, number) = (self.shard, self.generation, self.number);
        let edition = Edition(self.edition);
        write!(f, "{LOG}{shard}/{generation:020}-{number:020}{edition}.car.zst")
    }
}

impl fmt::Display for BoundaryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (shard, generation, number) = (self.shard, self.generation, self.number);
        write!(f, "{LOG}{shard}/{generation:020}-{number:020}{BOUNDARY_ENDING}")
    }
}

/// What stands before the ending of an object that was written again.
struct Edition(u32);

impl fmt::Display for Edition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => Ok(()),
            edition => write!(f, "{EDITION}{edition}"),
        }
    }
}

impl fmt::Display for BlobName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{BLOBS}{}/{}", self.did, Cid::raw(self.blob))
    }
}

impl fmt::Display for IdentityName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "v1/identity/{}/{}.json", self.did, self.time)
    }
}

impl fmt::Display for HostStateName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "v1/hosts/{}/{}.json", self.host, self.time)
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SERVICE}{}.json", self.time)
    }
}

impl fmt::Display for ErasedName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{ERASED}{}.json", self.did)
    }
}

impl fmt::Display for StateName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "v1/state/{}/{}/", self.host, self.time)?;
        match &self.part {
            StatePart::Named(part) => write!(f, "{}.age", part.0),
            StatePart::Account(did) => write!(f, "{did}.age"),
        }
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Archive => f.write_str(ARCHIVE),
            Self::Writer(name) => name.fmt(f),
            Self::Snapshot(name) => name.fmt(f),
            Self::Quarantined(name) => name.fmt(f),
            Self::Delta(name) => name.fmt(f),
            Self::Segment(name) => name.fmt(f),
            Self::Boundary(name) => name.fmt(f),
            Self::Blob(name) => name.fmt(f),
            Self::Identity(name) => name.fmt(f),
            Self::HostState(name) => name.fmt(f),
            Self::Service(name) => name.fmt(f),
            Self::State(name) => name.fmt(f),
            Self::Erased(name) => name.fmt(f),
        }
    }
}

impl FromStr for ObjectName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        check_object_name(text)?;
        let name = read(text)?;
        if name.to_string() == text {
            Ok(name)
        } else {
            Err(NameError::NotCanonical)
        }
    }
}

/// Reads a name, perhaps one that is not canonical.
fn read(text: &str) -> Result<ObjectName, NameError> {
    let rest = text.strip_prefix(ROOT).ok_or(NameError::Unknown)?;
    let parts: Vec<&str> = rest.split('/').collect();
    match *parts.as_slice() {
        ["archive.json"] => Ok(ObjectName::Archive),
        ["writers", shard, file] => Ok(ObjectName::Writer(WriterName {
            shard: number(shard)?,
            generation: number(ending(file, ".json")?)?,
        })),
        ["repos", did, file] => {
            if let Some(stem) = file.strip_suffix(".delta.car.zst") {
                read_delta(did, stem)
            } else if let Some(stem) = file.strip_suffix(QUARANTINED_ENDING) {
                read_quarantined(did, stem)
            } else {
                read_snapshot(did, ending(file, ".car.zst")?)
            }
        }
        ["log", shard, file] => {
            if let Some(stem) = file.strip_suffix(BOUNDARY_ENDING) {
                let (generation, count) = cut(stem, "-")?;
                return Ok(ObjectName::Boundary(BoundaryName {
                    shard: number(shard)?,
                    generation: number(generation)?,
                    number: number(count)?,
                }));
            }
            let (stem, edition) = edition(ending(file, ".car.zst")?)?;
            let (generation, count) = cut(stem, "-")?;
            Ok(ObjectName::Segment(SegmentName {
                shard: number(shard)?,
                generation: number(generation)?,
                number: number(count)?,
                edition,
            }))
        }
        ["blocks", did, cid] => Ok(ObjectName::Blob(BlobName {
            did: did_folder(did)?,
            blob: digest(cid, Codec::Raw)?,
        })),
        ["identity", did, file] => Ok(ObjectName::Identity(IdentityName {
            did: did_folder(did)?,
            time: ending(file, ".json")?.parse()?,
        })),
        ["hosts", host, file] => Ok(ObjectName::HostState(HostStateName {
            host: host_folder(host)?,
            time: ending(file, ".json")?.parse()?,
        })),
        ["service", file] => Ok(ObjectName::Service(ServiceName {
            time: ending(file, ".json")?.parse()?,
        })),
        ["state", host, time, file] => Ok(ObjectName::State(StateName {
            host: host_folder(host)?,
            time: time.parse()?,
            part: state_part(ending(file, ".age")?)?,
        })),
        ["erased", file] => Ok(ObjectName::Erased(ErasedName {
            did: did_folder(ending(file, ".json")?)?,
        })),
        _ => Err(NameError::Unknown),
    }
}

fn read_snapshot(did: &str, stem: &str) -> Result<ObjectName, NameError> {
    let (stem, edition) = edition(stem)?;
    let (rev, commit) = cut(stem, "-")?;
    Ok(ObjectName::Snapshot(SnapshotName {
        did: did_folder(did)?,
        rev: rev.parse()?,
        commit: digest(commit, Codec::DagCbor)?,
        edition,
    }))
}

fn read_quarantined(did: &str, stem: &str) -> Result<ObjectName, NameError> {
    let (stem, edition) = edition(stem)?;
    let (rev, commit) = cut(stem, "-")?;
    Ok(ObjectName::Quarantined(QuarantinedName {
        did: did_folder(did)?,
        rev: rev.parse()?,
        commit: digest(commit, Codec::DagCbor)?,
        edition,
    }))
}

fn read_delta(did: &str, stem: &str) -> Result<ObjectName, NameError> {
    let (stem, edition) = edition(stem)?;
    let (revs, commit) = cut(stem, "-")?;
    let (from, to) = cut(revs, "..")?;
    let commit = digest(commit, Codec::DagCbor)?;
    let name = DeltaName::new(did_folder(did)?, from.parse()?, to.parse()?, commit)?;
    Ok(ObjectName::Delta(name.with_edition(edition)))
}

/// Splits off which edition it is.
fn edition(stem: &str) -> Result<(&str, u32), NameError> {
    match stem.split_once(EDITION) {
        Some((stem, edition)) => Ok((stem, number(edition)?)),
        None => Ok((stem, 0)),
    }
}

fn state_part(stem: &str) -> Result<StatePart, NameError> {
    if stem.starts_with("did:") {
        Ok(StatePart::Account(did_folder(stem)?))
    } else {
        Ok(StatePart::Named(stem.parse()?))
    }
}

fn ending<'a>(file: &'a str, ending: &str) -> Result<&'a str, NameError> {
    file.strip_suffix(ending).ok_or(NameError::Unknown)
}

fn cut<'a>(text: &'a str, at: &str) -> Result<(&'a str, &'a str), NameError> {
    text.split_once(at).ok_or(NameError::Unknown)
}

fn number<T: FromStr>(text: &str) -> Result<T, NameError> {
    text.parse()
        .map_err(|_| SyntaxError::new("number", "must be a decimal number in range").into())
}

fn did_folder(text: &str) -> Result<DidFolder, NameError> {
    DidFolder::try_from(&text.parse::<Did>()?)
}

fn host_folder(text: &str) -> Result<HostFolder, NameError> {
    HostFolder::try_from(&text.parse::<HostName>()?)
}

fn digest(text: &str, codec: Codec) -> Result<Digest, NameError> {
    let cid: Cid = text.parse()?;
    if cid.codec() == codec {
        Ok(*cid.digest())
    } else {
        Err(SyntaxError::new("CID", "must be raw for a blob, dag-cbor for a commit").into())
    }
}
