//! What the machine can do, on one core: measured in the run that it is held against.

use std::io::Write as _;
use std::time::{Duration, Instant};

use firekeep::repo::signing_key::{Curve, SecretKey};
use firekeep::types::cid::sha256;

/// How long each is measured.
const TIME: Duration = Duration::from_millis(700);

/// Signature verifications per CPU-second, of a commit's size.
pub fn signatures(curve: Curve) -> f64 {
    let secret = SecretKey::from_bytes(curve, &[7; 32]).expect("in range");
    let (key, message) = (secret.public(), [b'x'; 220]);
    let sig = secret.sign(&message);
    per_cpu_second(|| {
        key.verify(&message, &sig).expect("it fits");
        1.0
    })
}

/// MB of blocks of a record's size that are hashed in a CPU-second.
pub fn hashing() -> f64 {
    let block = [b'x'; 400];
    per_cpu_second(|| {
        std::hint::black_box(sha256(std::hint::black_box(&block)));
        block.len() as f64 / 1e6
    })
}

/// MB of these that zstd compresses at this level in a CPU-second, and what is left of them.
pub fn zstd(bytes: &[u8], level: i32) -> (f64, f64) {
    let mut left = 0;
    let speed = per_cpu_second(|| {
        let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), level).expect("in memory");
        encoder.write_all(bytes).expect("in memory");
        left = encoder.finish().expect("in memory").len();
        bytes.len() as f64 / 1e6
    });
    (speed, left as f64 / bytes.len() as f64)
}

/// Milliseconds that a small write and its sync take in a folder: median, and p99.
pub fn sync(folder: &std::path::Path) -> (f64, f64) {
    let mut file = tempfile::tempfile_in(folder).expect("a file");
    let mut once = || {
        let began = Instant::now();
        file.write_all(&[b'x'; 4096]).expect("it is written");
        file.sync_data().expect("it is synced");
        began.elapsed().as_secs_f64() * 1000.0
    };
    let mut took: Vec<f64> = (0..200).map(|_| once()).collect();
    took.sort_unstable_by(f64::total_cmp);
    (took[100], took[198])
}

/// How often per CPU-second of this thread `work` does what it says that it did.
fn per_cpu_second(mut work: impl FnMut() -> f64) -> f64 {
    let (began, cpu) = (Instant::now(), thread_cpu());
    let mut done = 0.0;
    while began.elapsed() < TIME {
        for _ in 0..16 {
            done += work();
        }
    }
    done / (thread_cpu() - cpu)
}

/// Seconds that this thread ran on a CPU.
pub fn thread_cpu() -> f64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux");
    let nanos = text.split(' ').next().and_then(|text| text.parse::<f64>().ok());
    nanos.expect("a number") / 1e9
}
