#![allow(clippy::disallowed_methods, reason = "shell: blocking reads")]
//! The CAR of a quarantined repository: byte for byte what the host sent, hashed before its first byte goes out.

use std::io::{self, Write as _};
use std::ops::ControlFlow;

use sha2::{Digest as _, Sha256};
use tokio::sync::oneshot;

use super::super::response::XrpcError;
use super::{Begun, Export, ExportError, PIECE_BYTES, PieceWriter, RowsError};
use crate::metrics::labels::ExportResult;
use crate::mirror::StoreError;
use crate::mirror::reader::Mirror;
use crate::mirror::rows::KeptCar;

impl Export {
    pub(super) fn run_as_it_came(
        &self,
        mirror: &Mirror<'_>,
        car: &KeptCar,
        begin: oneshot::Sender<Result<Begun, XrpcError>>,
    ) {
        match self.is_whole(mirror, car) {
            Ok(true) => {}
            Ok(false) => {
                tracing::error!(did = %self.did, "the CAR that is kept of a quarantined account is damaged: not served");
                self.ended(ExportResult::Unproven);
                begin.send(Err(XrpcError::Internal)).ok();
                return;
            }
            Err(error) => {
                begin.send(Err(self.unreadable(&error))).ok();
                return;
            }
        }
        let answer = Begun {
            commit: car.commit,
            length: car.bytes,
            as_it_came: true,
        };
        if begin.send(Ok(answer)).is_err() {
            return self.ended(ExportResult::Aborted);
        }
        let mut out = PieceWriter {
            export: self,
            piece: Vec::with_capacity(PIECE_BYTES),
        };
        let mut written = Ok(());
        let read = mirror.car_chunks(car, |chunk| {
            written = out.write_all(chunk);
            match &written {
                Ok(()) => ControlFlow::Continue(()),
                Err(_) => ControlFlow::Break(()),
            }
        });
        let sent = match read {
            Ok(_) => written
                .and_then(|()| io::Write::flush(&mut out))
                .map_err(ExportError::Write),
            Err(error) => Err(ExportError::Rows(RowsError::Store(error))),
        };
        self.finish(sent);
    }

    /// Whether what is held is what came.
    fn is_whole(&self, mirror: &Mirror<'_>, car: &KeptCar) -> Result<bool, RowsError> {
        let (mut hasher, mut stopped) = (Sha256::new(), None);
        let bytes = mirror.car_chunks(car, |chunk| {
            stopped = self.stop();
            hasher.update(chunk);
            match stopped {
                None => ControlFlow::Continue(()),
                Some(_) => ControlFlow::Break(()),
            }
        })?;
        match stopped {
            Some(why) => Err(why),
            None => Ok(bytes == car.bytes && <[u8; 32]>::from(hasher.finalize()) == car.sha256),
        }
    }

    fn unreadable(&self, error: &RowsError) -> XrpcError {
        match error {
            RowsError::Gone | RowsError::Late => self.ended(ExportResult::Aborted),
            RowsError::Store(StoreError::BadRow { .. }) => {
                tracing::error!(did = %self.did, %error, "the CAR that is kept of a quarantined account is damaged: not served");
                self.ended(ExportResult::Unproven);
            }
            RowsError::Store(_) => tracing::error!(did = %self.did, %error, "the mirror cannot be read"),
        }
        XrpcError::Internal
    }
}
