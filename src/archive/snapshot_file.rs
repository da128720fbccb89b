//! The file around a CAR: one plain zstd frame, which `zstd -d` opens.
//!
//! Written with level 3 and without a dictionary or long matches (measured: more costs much and gains little on
//! records in path order), with a checksum, and with the content size where it is known beforehand. The encoder
//! hashes what it writes, so that the digest of the stored object is known without reading it again.
//!
//! Read with fixed memory whatever the frame asks for: the window is at most [`WINDOW_LOG_MAX`] and the output at
//! most what the caller allows. Either limit has an error of its own: a file that reaches it is a bomb or not ours.
//!
//! Sources: RFC 8878 (zstd).

use std::io::{self, BufReader, Read, Write};

use sha2::{Digest as _, Sha256};
use zstd::zstd_safe::zstd_sys::ZSTD_ErrorCode;

use crate::types::Digest;

/// Compression level.
const LEVEL: i32 = 3;
/// Largest window that a reader takes, as a power of two: 8 MiB, four times what `LEVEL` makes.
pub const WINDOW_LOG_MAX: u32 = 23;
/// What is read from the source at once, in bytes.
const READ_BYTES: usize = 128 * 1024;

/// What a file turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileStats {
    /// Length of what is inside.
    pub plain_bytes: u64,
    /// Length of the file.
    pub file_bytes: u64,
    /// SHA-256 of the file.
    pub sha256: Digest,
}

/// Why a file could not be written or read. From a [`Read`] or [`Write`] call it comes wrapped in an
/// [`io::Error`]; `From` unwraps it.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotFileError {
    /// The content is longer than the caller allows.
    #[error("the file unpacks to more than {plain_bytes_max} bytes, which is more than it may hold")]
    TooLong {
        /// The limit.
        plain_bytes_max: u64,
    },
    /// The frame demands a larger window than [`WINDOW_LOG_MAX`].
    #[error("the file demands more memory to unpack than Firekeep's own files ever do (window above 8 MiB)")]
    WindowTooLarge,
    /// The file ends within its frame.
    #[error("the file is cut off: it ends within its zstd frame")]
    CutOff,
    /// The frame is damaged, or it is none.
    #[error("the file is damaged, or not zstd: {0}")]
    Damaged(String),
    /// The reader was finished before the content's end.
    #[error("the file holds more than was read of it")]
    Unread,
    /// Not as many bytes were written as had been announced.
    #[error("{written} bytes were written to a file that was announced with {announced}")]
    NotAsAnnounced {
        /// The announced length.
        announced: u64,
        /// As many bytes as were written, or would have been.
        written: u64,
    },
    /// The source or sink failed.
    #[error(transparent)]
    Io(io::Error),
}

impl From<io::Error> for SnapshotFileError {
    fn from(error: io::Error) -> Self {
        match error.downcast::<Self>() {
            Ok(own) => own,
            Err(other) => Self::Io(other),
        }
    }
}

impl From<SnapshotFileError> for io::Error {
    fn from(error: SnapshotFileError) -> Self {
        match error {
            SnapshotFileError::Io(error) => error,
            SnapshotFileError::CutOff => Self::new(io::ErrorKind::UnexpectedEof, error),
            SnapshotFileError::NotAsAnnounced { .. } => Self::new(io::ErrorKind::InvalidInput, error),
            _ => Self::new(io::ErrorKind::InvalidData, error),
        }
    }
}

/// Packs what is written to it. Nothing is complete before [`Self::finish`].
pub struct SnapshotEncoder<W: Write> {
    zstd: zstd::stream::write::Encoder<'static, Hashing<W>>,
    plain_bytes: u64,
    announced: Option<u64>,
}

impl<W: Write> SnapshotEncoder<W> {
    /// Begins a file. `plain_bytes` is the length of the content, if it is known: it then stands in the frame's
    /// head, and another length is an error.
    ///
    /// # Errors
    /// When zstd cannot be set up (no memory).
    pub fn new(out: W, plain_bytes: Option<u64>) -> io::Result<Self> {
        let mut zstd = zstd::stream::write::Encoder::new(Hashing::new(out), LEVEL)?;
        zstd.include_checksum(true)?;
        zstd.set_pledged_src_size(plain_bytes)?;
        Ok(Self {
            zstd,
            plain_bytes: 0,
            announced: plain_bytes,
        })
    }

    /// Ends the frame and gives back the sink, flushed but not synced.
    ///
    /// # Errors
    /// [`SnapshotFileError::NotAsAnnounced`], or the sink's.
    pub fn finish(self) -> Result<(W, FileStats), SnapshotFileError> {
        if let Some(announced) = self.announced
            && announced != self.plain_bytes
        {
            let written = self.plain_bytes;
            return Err(SnapshotFileError::NotAsAnnounced { announced, written });
        }
        let mut sink = self.zstd.finish()?;
        sink.inner.flush()?;
        Ok(sink.end(self.plain_bytes))
    }
}

impl<W: Write> Write for SnapshotEncoder<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.plain_bytes + bytes.len() as u64;
        if let Some(announced) = self.announced
            && written > announced
        {
            return Err(SnapshotFileError::NotAsAnnounced { announced, written }.into());
        }
        let count = self.zstd.write(bytes)?;
        self.plain_bytes += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.zstd.flush()
    }
}

/// Unpacks a file, within limits.
pub struct SnapshotDecoder<R: Read> {
    zstd: zstd::stream::read::Decoder<'static, BufReader<Hashing<R>>>,
    plain_bytes: u64,
    plain_bytes_max: u64,
}

impl<R: Read> SnapshotDecoder<R> {
    /// Begins to read a file whose content may have at most `plain_bytes_max` bytes.
    ///
    /// # Errors
    /// When zstd cannot be set up (no memory).
    pub fn new(file: R, plain_bytes_max: u64) -> io::Result<Self> {
        let buffered = BufReader::with_capacity(READ_BYTES, Hashing::new(file));
        let mut zstd = zstd::stream::read::Decoder::with_buffer(buffered)?;
        zstd.window_log_max(WINDOW_LOG_MAX)?;
        Ok(Self {
            zstd,
            plain_bytes: 0,
            plain_bytes_max,
        })
    }

    /// Checks that the content was read to its end, and tells what the file was. The digest is to be compared with
    /// the one noted when it was written.
    ///
    /// # Errors
    /// [`SnapshotFileError::Unread`], or whatever the rest of the file has wrong.
    pub fn finish(mut self) -> Result<(R, FileStats), SnapshotFileError> {
        if self.read(&mut [0])? != 0 {
            return Err(SnapshotFileError::Unread);
        }
        Ok(self.zstd.finish().into_inner().end(self.plain_bytes))
    }
}

impl<R: Read> Read for SnapshotDecoder<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.zstd.read(buffer).map_err(read_error)?;
        self.plain_bytes += count as u64;
        if self.plain_bytes > self.plain_bytes_max {
            let plain_bytes_max = self.plain_bytes_max;
            return Err(SnapshotFileError::TooLong { plain_bytes_max }.into());
        }
        Ok(count)
    }
}

/// Tells zstd's errors, which are texts, from those of the source, which pass.
fn read_error(error: io::Error) -> io::Error {
    if error.kind() == io::ErrorKind::UnexpectedEof {
        return SnapshotFileError::CutOff.into();
    }
    let Some(zstd_error) = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<zstd::Error>())
    else {
        return error;
    };
    if zstd_error.is(ZSTD_ErrorCode::ZSTD_error_frameParameter_windowTooLarge) {
        return SnapshotFileError::WindowTooLarge.into();
    }
    SnapshotFileError::Damaged(zstd_error.to_string()).into()
}

/// Counts and hashes what passes.
struct Hashing<T> {
    inner: T,
    bytes: u64,
    hash: Sha256,
}

impl<T> Hashing<T> {
    fn new(inner: T) -> Self {
        Self {
            inner,
            bytes: 0,
            hash: Sha256::new(),
        }
    }

    fn pass(&mut self, bytes: &[u8]) {
        self.bytes += bytes.len() as u64;
        self.hash.update(bytes);
    }

    fn end(self, plain_bytes: u64) -> (T, FileStats) {
        let stats = FileStats {
            plain_bytes,
            file_bytes: self.bytes,
            sha256: self.hash.finalize().into(),
        };
        (self.inner, stats)
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(bytes)?;
        self.pass(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.pass(&buffer[..count]);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::cid::sha256;

    fn pack(content: &[u8], announced: Option<u64>) -> (Vec<u8>, FileStats) {
        let mut encoder = SnapshotEncoder::new(Vec::new(), announced).expect("memory");
        encoder.write_all(content).expect("a Vec takes all");
        encoder.finish().expect("as announced")
    }

    fn unpack(file: &[u8], max: u64) -> Result<(Vec<u8>, FileStats), SnapshotFileError> {
        let mut decoder = SnapshotDecoder::new(file, max)?;
        let mut content = Vec::new();
        decoder.read_to_end(&mut content)?;
        let (_, stats) = decoder.finish()?;
        Ok((content, stats))
    }

    fn content() -> Vec<u8> {
        (0..300_000_u32).flat_map(|n| (n / 7).to_le_bytes()).collect()
    }

    #[test]
    fn files_round_trip_and_both_sides_agree() {
        for content in [content(), Vec::new()] {
            let length = content.len() as u64;
            for announced in [None, Some(length)] {
                let (file, written) = pack(&content, announced);
                assert_eq!(written.plain_bytes, length);
                assert_eq!(
                    (written.file_bytes, written.sha256),
                    (file.len() as u64, sha256(&file))
                );
                // The limit is exact.
                assert_eq!(unpack(&file, length).expect("sound"), (content.clone(), written));
            }
        }
    }

    #[test]
    fn the_frame_says_what_it_should() {
        let (file, _) = pack(&content(), Some(1_200_000));
        let descriptor = file[4];
        assert_eq!(descriptor & 0b100, 0b100, "checksum");
        assert_eq!(zstd::stream::decompressed_size(&file), Some(1_200_000));
        assert_eq!(zstd::stream::decode_all(&*file).expect("plain zstd"), content());
    }

    #[test]
    fn bombs_are_refused_within_the_limits() {
        let zeros = vec![0; 50 << 20];
        let (bomb, _) = pack(&zeros, None);
        assert!(bomb.len() < 10_000, "{} bytes", bomb.len());
        let mut decoder = SnapshotDecoder::new(&*bomb, 1 << 20).expect("memory");
        let mut taken = 0;
        let error = loop {
            match decoder.read(&mut [0; 4096]) {
                Ok(count) => taken += count,
                Err(error) => break SnapshotFileError::from(error),
            }
        };
        assert!(
            matches!(
                error,
                SnapshotFileError::TooLong {
                    plain_bytes_max: 0x10_0000
                }
            ),
            "{error}"
        );
        assert!(taken <= 1 << 20, "{taken}");
    }

    #[test]
    fn large_windows_are_refused() {
        for (log, accepted) in [(WINDOW_LOG_MAX, true), (WINDOW_LOG_MAX + 1, false), (27, false)] {
            let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 3).expect("memory");
            encoder.window_log(log).expect("a legal window");
            encoder.write_all(&content()).expect("a Vec takes all");
            let read = unpack(&encoder.finish().expect("a Vec takes all"), u64::MAX);
            match read {
                Ok(_) => assert!(accepted, "window of 2^{log}"),
                Err(SnapshotFileError::WindowTooLarge) => assert!(!accepted, "window of 2^{log}"),
                Err(other) => panic!("window of 2^{log}: {other}"),
            }
        }
    }

    #[test]
    fn cut_and_damaged_files_are_told_apart() {
        let (file, _) = pack(&content(), None);
        for length in [1, 4, 20, file.len() / 2, file.len() - 1] {
            let read = unpack(&file[..length], u64::MAX);
            assert!(
                matches!(read, Err(SnapshotFileError::CutOff)),
                "{length}: {read:?}"
            );
        }
        for at in [0, 5, file.len() / 2, file.len() - 1] {
            let mut bad = file.clone();
            bad[at] ^= 0x55;
            assert!(unpack(&bad, u64::MAX).is_err(), "flipped byte {at}");
        }
        let mut bad = file.clone();
        *bad.last_mut().expect("not empty") ^= 1;
        assert!(
            matches!(unpack(&bad, u64::MAX), Err(SnapshotFileError::Damaged(_))),
            "checksum"
        );
        bad = file;
        bad.extend_from_slice(b"behind the frame");
        assert!(
            matches!(unpack(&bad, u64::MAX), Err(SnapshotFileError::Damaged(_))),
            "trailing bytes"
        );
        // Nothing at all is a stream of no frames to zstd, but no file of ours.
        assert!(
            matches!(unpack(b"", u64::MAX), Err(SnapshotFileError::CutOff)),
            "empty"
        );
    }

    #[test]
    fn unread_content_is_noticed() {
        let (file, _) = pack(&content(), None);
        let mut decoder = SnapshotDecoder::new(&*file, u64::MAX).expect("memory");
        decoder.read_exact(&mut [0; 100]).expect("there is more");
        assert!(matches!(decoder.finish(), Err(SnapshotFileError::Unread)));
    }

    #[test]
    fn announced_lengths_are_kept() {
        let mut encoder = SnapshotEncoder::new(Vec::new(), Some(3)).expect("memory");
        let error: SnapshotFileError = encoder.write_all(b"four").expect_err("too long").into();
        assert!(
            matches!(
                error,
                SnapshotFileError::NotAsAnnounced {
                    announced: 3,
                    written: 4
                }
            ),
            "{error}"
        );
        let mut encoder = SnapshotEncoder::new(Vec::new(), Some(3)).expect("memory");
        encoder.write_all(b"2b").expect("short enough");
        let error = encoder.finish().expect_err("too short");
        assert!(
            matches!(
                error,
                SnapshotFileError::NotAsAnnounced {
                    announced: 3,
                    written: 2
                }
            ),
            "{error}"
        );
    }

    #[test]
    fn errors_of_the_source_pass() {
        struct Broken;
        impl Read for Broken {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::Error::new(io::ErrorKind::ConnectionReset, "gone"))
            }
        }
        let mut decoder = SnapshotDecoder::new(Broken, 1).expect("memory");
        let error: SnapshotFileError = decoder.read(&mut [0]).expect_err("broken").into();
        assert!(matches!(&error, SnapshotFileError::Io(e) if e.kind() == io::ErrorKind::ConnectionReset));
    }
}
