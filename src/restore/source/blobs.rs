#![allow(clippy::disallowed_methods, reason = "shell: files, the archive, the network")]
//! Blobs, each brought into a temporary file and hashed.

use std::fs::File;
use std::io::{self, Read, Seek as _, SeekFrom, Write as _};
use std::path::Path;

use futures_util::StreamExt as _;
use sha2::{Digest as _, Sha256};

use super::{BLOB_BYTES_MAX, BlobStore, Fetched, RestoreError, temporary};
use crate::http::request::{FetchError, Limits};
use crate::mirror::blobs::query_value;
use crate::types::Cid;

impl BlobStore {
    /// Brings a blob into a temporary file, and hashes it.
    ///
    /// # Errors
    /// When the store does not answer, or the file cannot be written. What is wrong with one blob is no error.
    pub async fn fetch(&self, cid: &Cid, temp_dir: &Path) -> Result<Fetched, RestoreError> {
        let mut sink = Sink {
            file: tempfile::tempfile_in(temp_dir).map_err(|error| temporary(temp_dir, &error))?,
            hash: Sha256::new(),
            size: 0,
        };
        let written = |done: io::Result<()>| done.map_err(|error| temporary(temp_dir, &error));
        match self {
            Self::None => return Ok(Fetched::Missing),
            Self::Archive(reader, did) => {
                let Some(mut body) = reader.blob(did, cid).await.map_err(RestoreError::failed)? else {
                    return Ok(Fetched::Missing);
                };
                while let Some(bytes) = body.stream.next().await {
                    match bytes {
                        Ok(bytes) => written(sink.write(&bytes))?,
                        Err(error) if error.is_transient() => return Err(RestoreError::failed(error)),
                        Err(error) => return Ok(Fetched::Damaged(error.to_string())),
                    }
                }
            }
            Self::Folder(dir) => match File::open(dir.join(cid.to_string())) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Fetched::Missing),
                Err(error) => return Ok(Fetched::Damaged(error.to_string())),
                Ok(file) => {
                    if let Err(error) = sink.fill(file.take(BLOB_BYTES_MAX)) {
                        return Ok(Fetched::Damaged(error.to_string()));
                    }
                }
            },
            Self::Tar(path, index) => {
                let Some((at, size)) = index.get(cid.digest()) else {
                    return Ok(Fetched::Missing);
                };
                let opened =
                    File::open(path).and_then(|mut file| file.seek(SeekFrom::Start(*at)).map(|_| file));
                if let Err(error) = opened.and_then(|file| sink.fill(file.take(*size))) {
                    return Ok(Fetched::Damaged(error.to_string()));
                }
            }
            Self::Host(http, url, did) => {
                let did = query_value(did.as_str());
                let address = format!("{url}/xrpc/com.atproto.sync.getBlob?did={did}&cid={cid}");
                let mut body = match http.get(&address, &Limits::download(BLOB_BYTES_MAX)).await {
                    Ok(answer) => answer.body,
                    Err(FetchError::Status {
                        status: 400 | 404, ..
                    }) => return Ok(Fetched::Missing),
                    Err(error) => return Err(RestoreError::failed(error)),
                };
                while let Some(bytes) = body.chunk().await.map_err(RestoreError::failed)? {
                    written(sink.write(&bytes))?;
                }
            }
        }
        let hash: [u8; 32] = sink.hash.finalize().into();
        if hash != *cid.digest() {
            return Ok(Fetched::Damaged("its bytes do not hash to its CID".to_owned()));
        }
        let mut file = sink.file;
        written(file.rewind())?;
        Ok(Fetched::Whole(file, sink.size))
    }
}

/// A file that is hashed while it is written.
struct Sink {
    file: File,
    hash: Sha256,
    size: u64,
}

impl Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hash.update(bytes);
        self.size += bytes.len() as u64;
        self.file.write_all(bytes)
    }

    fn fill(&mut self, mut source: impl Read) -> io::Result<()> {
        let mut buffer = vec![0; 1 << 16];
        loop {
            match source.read(&mut buffer)? {
                0 => return Ok(()),
                count => self.write(&buffer[..count])?,
            }
        }
    }
}
