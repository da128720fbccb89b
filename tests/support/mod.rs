//! What the end-to-end tests stand on: a sandbox of real services, Firekeep as a process of its own, and patience.
//!
//! Nothing here knows Firekeep's code: the binary is run, its listeners are asked, and what it holds is judged by
//! the sandbox's own comparer.

pub mod alone;
pub mod firekeep;
pub mod gate;
pub mod history;
pub mod http;
pub mod metrics;
pub mod proxy;
pub mod sandbox;
pub mod stream;

use std::fmt::Debug;
use std::hash::{BuildHasher as _, Hasher as _};
use std::io::Write as _;
use std::net::TcpListener;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long anything may take that happens by itself. No verdict depends on it: what comes at all comes in a
/// fraction of it.
pub const PATIENCE: Duration = Duration::from_secs(120);
/// Between two looks at what is waited for.
const LOOK: Duration = Duration::from_millis(20);

/// Whether the long form of the tests is asked for.
pub fn full() -> bool {
    std::env::var_os("FIREKEEP_E2E_FULL").is_some_and(|value| value == "1")
}

/// One number for the short form of the tests, one for the long.
pub fn sized(short: u64, long: u64) -> u64 {
    if full() { long } else { short }
}

/// Prints a line that shows without `--nocapture`: the test harness captures only what goes through its macros.
pub fn say(line: &str) {
    let mut out = std::io::stderr().lock();
    // Nobody may be there to read it.
    let _unread = writeln!(out, "{line}").and_then(|()| out.flush());
}

/// The one line of counts of a test.
pub fn report(name: &str, began: Instant, counts: &str) {
    say(&format!(
        "e2e: {name}: {counts}; {:.1} s",
        began.elapsed().as_secs_f64()
    ));
}

/// Looks until `look` gives something. Panics with what it saw last when patience ends.
pub fn wait_for<T, S: Debug>(what: &str, mut look: impl FnMut() -> Result<T, S>) -> T {
    let until = Instant::now() + PATIENCE;
    loop {
        match look() {
            Ok(found) => return found,
            Err(seen) if Instant::now() > until => {
                panic!("{what}: not within {} s; last seen: {seen:?}", PATIENCE.as_secs())
            }
            Err(_) => std::thread::sleep(LOOK),
        }
    }
}

/// A port of the loopback interface that nobody listens on. It lies below the ports that the kernel gives to
/// outgoing connections, so that it is still free when a process is started again.
pub fn free_port() -> u16 {
    for _ in 0..500 {
        let port = u16::try_from(12_000 + random() % 20_000).expect("below 32000");
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no port between 12000 and 32000 is free");
}

/// A number that differs each time.
pub fn random() -> u64 {
    std::collections::hash_map::RandomState::new()
        .build_hasher()
        .finish()
}

/// The same numbers for the same seed (splitmix64).
pub struct Chance(pub u64);

impl Chance {
    /// The seed of this run: `FIREKEEP_E2E_SEED`, or always the same.
    pub fn seed() -> u64 {
        std::env::var("FIREKEEP_E2E_SEED").ok().map_or(20_261, |text| {
            text.parse().expect("FIREKEEP_E2E_SEED is a number")
        })
    }

    /// A duration below `most`.
    pub fn below(&mut self, most: Duration) -> Duration {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let micros = u64::try_from(most.as_micros()).expect("seconds at most");
        Duration::from_micros((z ^ (z >> 31)) % (micros + 1))
    }
}

/// Every file below a folder with its size and the time of its last change, sorted: to see that nothing was touched.
pub fn inventory(folder: &Path) -> Vec<String> {
    fn walk(folder: &Path, root: &Path, found: &mut Vec<String>) {
        for entry in std::fs::read_dir(folder).expect("a readable folder") {
            let entry = entry.expect("a readable entry");
            let (path, meta) = (entry.path(), entry.metadata().expect("an entry's metadata"));
            let shown = path.strip_prefix(root).expect("below the root").display();
            if meta.is_dir() {
                found.push(format!("{shown}/"));
                walk(&path, root, found);
            } else {
                let changed = meta.modified().expect("a time");
                found.push(format!("{shown} {} {changed:?}", meta.len()));
            }
        }
    }
    let mut found = Vec::new();
    walk(folder, folder, &mut found);
    found.sort();
    found
}
