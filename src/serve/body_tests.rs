//! Tests of bodies: how they end, what is counted, and gzip.

use http_body_util::BodyExt as _;

use super::*;

#[tokio::test]
async fn a_stream_ends_well_only_when_its_producer_says_so() {
    for (last, ok) in [
        (Some(Piece::End), true),
        (None, false),
        (Some(Piece::Cut(io::Error::other("store"))), false),
    ] {
        let (sender, pieces) = mpsc::channel(4);
        let body = Body::pieces(pieces, 5);
        assert_eq!((body.size_hint().exact(), body.is_end_stream()), (Some(5), false));
        sender
            .try_send(Piece::Data(Bytes::from_static(b"bytes")))
            .map_err(|_| "full")
            .expect("room");
        if let Some(last) = last {
            sender.try_send(last).map_err(|_| "full").expect("room");
        }
        drop(sender);
        let got = body.collect().await;
        assert_eq!(got.is_ok(), ok);
        if let Ok(collected) = got {
            assert_eq!(collected.to_bytes(), "bytes");
        }
    }
}

#[tokio::test]
async fn bytes_and_time_are_reported_when_the_body_is_gone() {
    let metrics = Arc::new(Metrics::new());
    let tallied = |body: Body| body.tallied(&metrics, Endpoint::GetBlob, Instant::now());
    drop(tallied(Body::whole("never sent")));
    tallied(Body::whole("sent"))
        .collect()
        .await
        .expect("whole bodies do not fail");
    assert_eq!(metrics.http_response_bytes.of(Endpoint::GetBlob).get(), 4);
    assert_eq!(metrics.http_duration.of(Endpoint::GetBlob).get_sample_count(), 2);
}

#[tokio::test]
async fn a_gzipped_body_is_whole_only_when_its_producer_says_so() {
    use std::io::Read as _;
    for (last, ok) in [
        (Some(Piece::End), true),
        (None, false),
        (Some(Piece::Cut(io::Error::other("store"))), false),
    ] {
        let (sender, pieces) = mpsc::channel(8);
        let body = Body::pieces(pieces, 200_000).gzipped();
        assert_eq!((body.length(), body.is_end_stream()), (None, false));
        // Bytes that hardly compress, so that some come out before the end.
        let bytes: Vec<u8> = (0..200_000u64)
            .map(|at| (at.wrapping_mul(at).wrapping_mul(2_654_435_761) >> 13) as u8)
            .collect();
        for piece in bytes.chunks(50_000) {
            let piece = Piece::Data(Bytes::copy_from_slice(piece));
            sender.try_send(piece).map_err(|_| "full").expect("room");
        }
        if let Some(last) = last {
            sender.try_send(last).map_err(|_| "full").expect("room");
        }
        drop(sender);
        let got = body.collect().await;
        assert_eq!(got.is_ok(), ok);
        if let Ok(collected) = got {
            let (coded, mut text) = (collected.to_bytes(), Vec::new());
            flate2::read::GzDecoder::new(&coded[..])
                .read_to_end(&mut text)
                .expect("gzip");
            assert!(text == bytes);
        }
    }
    let empty = Body::whole("")
        .gzipped()
        .collect()
        .await
        .expect("whole")
        .to_bytes();
    let mut text = Vec::new();
    flate2::read::GzDecoder::new(&empty[..])
        .read_to_end(&mut text)
        .expect("gzip of nothing");
    assert!(text.is_empty());
}
