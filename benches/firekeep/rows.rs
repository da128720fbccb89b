//! The rows of the table.

use std::time::{Duration, Instant};

use firekeep::mirror::rocks::{RocksOptions, RocksStore};
use firekeep::mirror::store::{Family, KeyRange, Store as _};
use firekeep::repo::signing_key::Curve;

use super::daemon::{Bench, Load, files_bytes};
use super::limits;
use super::report::{Figure, Report, Target};

/// Measures some figures at a scale.
type Row = fn(u64, &mut Report);

/// Every row by its name, in the order in which they run.
pub const ALL: [(&str, Row); 7] = [
    ("commits", commits),
    ("latency", latency),
    ("size", size),
    ("repo", repo),
    ("disk", disk),
    ("memory", memory),
    ("restart", restart),
];

/// CPU-seconds for each commit, and commits a second, of a host that sends all at once.
fn flat_out(load: Load, events: u64) -> (f64, f64, Bench) {
    let mut bench = Bench::new(load);
    bench.start();
    bench.until_live(load.accounts);
    bench.until_quiet();
    bench.make(events);
    let (cpu, began) = (bench.cpu(), Instant::now());
    bench.send(None);
    bench.until_applied(events);
    let wall = began.elapsed().as_secs_f64();
    bench.until_shipped();
    ((bench.cpu() - cpu) / events as f64, events as f64 / wall, bench)
}

fn commits(scale: u64, report: &mut Report) {
    let limit = limits::signatures(Curve::K256);
    report.add(Figure::new(
        "P-256 signatures verified",
        limits::signatures(Curve::P256),
        "per CPU-s",
        Target::None,
    ));
    let load = Load {
        accounts: 200,
        records: 200,
        even: false,
    };
    let (each, wall, _) = flat_out(load, 40_000 * scale);
    let figure = Figure::new(
        "commits verified, durable and shipped",
        1.0 / each,
        "per CPU-s",
        Target::AtLeast(0.4),
    );
    report.add(figure.beside("K-256 signatures per CPU-s", limit).of_limit());
    report.add(Figure::new(
        "commits verified and durable, wall",
        wall,
        "per s",
        Target::None,
    ));
}

fn latency(scale: u64, report: &mut Report) {
    let load = Load {
        accounts: 200,
        records: 200,
        even: false,
    };
    let (rate, events) = (500, 8_000 * scale);
    let mut bench = Bench::new(load);
    bench.start();
    bench.until_live(load.accounts);
    bench.until_quiet();
    bench.make(events);
    let (median, p99) = limits::sync(&bench.data_dir());
    let before = bench.exposition();
    bench.send(Some(rate));
    bench.until_applied(events);
    bench.until_shipped();
    for (share, name, sync) in [(0.5, "median", median), (0.99, "p99", p99)] {
        let took = bench.quantile("firekeep_apply_duration_seconds", share, &before) * 1000.0;
        let target = if share > 0.9 {
            Target::AtMost(20.0)
        } else {
            Target::None
        };
        let figure = Figure::new(
            format!("socket → durable at 500/s, {name}, at most"),
            took,
            "ms",
            target,
        );
        report.add(figure.beside(&format!("ms a sync, {name}"), sync));
    }
    let took = bench.quantile("firekeep_log_ship_duration_seconds", 0.99, &before) * 1000.0;
    report.add(Figure::new(
        "socket → archive (a folder) at 500/s, p99, at most",
        took,
        "ms",
        Target::AtMost(1500.0),
    ));
}

fn size(scale: u64, report: &mut Report) {
    let of = |accounts, records| Load {
        accounts,
        records,
        even: true,
    };
    let events = 12_000;
    let (small, _, _) = flat_out(of(4, 100), events);
    let (large, _, _) = flat_out(of(4, 25_000 * scale), events);
    report.add(Figure::new(
        format!(
            "cost of a commit, accounts of {} records over 100",
            25_000 * scale
        ),
        large / small,
        "×",
        Target::AtMost(1.15),
    ));
    let (few, _, _) = flat_out(of(1000, 5), events);
    let (many, _, _) = flat_out(of(5000 * scale, 5), events);
    report.add(Figure::new(
        format!("cost of a commit, {} accounts over 1 000", 5000 * scale),
        many / few,
        "×",
        Target::AtMost(1.15),
    ));
}

fn repo(scale: u64, report: &mut Report) {
    let hashing = limits::hashing();
    let load = Load {
        accounts: 1,
        records: 100_000 * scale,
        even: true,
    };
    let mut bench = Bench::new(load);
    let car = bench.car_bytes(1) as f64 / 1e6;
    bench.start();
    let base = bench.memory().0;
    bench.reset_peak();
    let (cpu, began) = (bench.cpu(), Instant::now());
    bench.until_live(1);
    let (cpu, wall) = (bench.cpu() - cpu, began.elapsed().as_secs_f64());
    let what = format!(
        "import of {} k records, in no order, to durable",
        load.records / 1000
    );
    let figure = Figure::new(&what, car / cpu, "MB per CPU-s", Target::AtLeast(80.0));
    report.add(figure.beside("MB hashed per CPU-s", hashing));
    report.add(Figure::new(
        format!("{what}, wall"),
        car / wall,
        "MB/s",
        Target::None,
    ));
    let extra = bench.memory().1 - base;
    report.add(Figure::new(
        format!("{what}: extra memory"),
        extra,
        "MiB",
        Target::AtMost(64.0),
    ));

    bench.until_quiet();
    let did = bench.first_did();
    bench.get_repo(&did, None);
    let base = bench.memory().0;
    bench.reset_peak();
    let cpu = bench.cpu();
    let (mut bytes, mut firsts) = (0, Vec::new());
    for _ in 0..5 {
        let (sent, first) = bench.get_repo(&did, None);
        bytes += sent;
        firsts.push(first);
    }
    let cpu = bench.cpu() - cpu;
    firsts.sort_unstable();
    let figure = Figure::new(
        "getRepo, proven first",
        bytes as f64 / 1e6 / cpu,
        "MB per CPU-s",
        Target::AtLeast(300.0),
    );
    report.add(figure.beside("MB hashed per CPU-s", hashing));
    report.add(Figure::new(
        format!("getRepo of {} k records, first byte", load.records / 1000),
        firsts[2].as_secs_f64() * 1000.0,
        "ms",
        if scale == 1 {
            Target::AtMost(150.0)
        } else {
            Target::None
        },
    ));
    report.add(Figure::new(
        "getRepo: extra memory",
        bench.memory().1 - base,
        "MiB",
        Target::AtMost(64.0),
    ));
    bench.reset_peak();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| bench.get_repo(&did, Some(Duration::from_millis(4))));
        }
    });
    report.add(Figure::new(
        "getRepo to 8 slow clients: extra memory",
        bench.memory().1 - base,
        "MiB",
        Target::AtMost(64.0),
    ));
}

fn disk(scale: u64, report: &mut Report) {
    let load = Load {
        accounts: 300 * scale,
        records: 500,
        even: false,
    };
    let mut bench = Bench::new(load);
    let raw = bench.car_bytes(1000) as f64;
    bench.start();
    bench.until_live(load.accounts);
    bench.until_quiet();
    let (seconds, tried) = (
        bench.metric("firekeep_snapshot_duration_seconds_sum"),
        bench.metric("firekeep_snapshot_duration_seconds_count"),
    );
    report.add(Figure::new(
        "one snapshot of 500 records, proof and folder, mean",
        seconds / tried * 1000.0,
        "ms",
        Target::None,
    ));
    let cars = bench.exports(40);
    bench.stop();
    let snapshots = files_bytes(&bench.data_dir().join("archive"), ".car.zst") as f64;
    report.add(Figure::new(
        "snapshots over CARs",
        snapshots / raw,
        "×",
        Target::AtMost(0.40),
    ));

    let store = RocksStore::open(&bench.data_dir(), &RocksOptions::default()).expect("the daemon is stopped");
    for family in Family::ALL {
        store
            .compact_range(family, &KeyRange::all())
            .expect("it compacts");
    }
    let bytes = store.stats().disk_bytes as f64;
    report.add(Figure::new(
        "mirror over CARs, compacted",
        bytes / raw,
        "×",
        Target::AtMost(0.40),
    ));
    for level in [1, 3, 9] {
        let (speed, ratio) = limits::zstd(&cars, level);
        let target = if level == 3 {
            Target::AtLeast(100.0)
        } else {
            Target::None
        };
        report.add(Figure::new(
            format!("zstd level {level} of CARs, to {ratio:.2}"),
            speed,
            "MB per CPU-s",
            target,
        ));
    }
}

fn memory(scale: u64, report: &mut Report) {
    let load = Load {
        accounts: 100 * scale,
        records: 2000,
        even: false,
    };
    let (_, _, bench) = flat_out(load, 10_000);
    bench.until_quiet();
    let (now, most) = bench.memory();
    let what = format!("{} accounts, 2 000 records each", load.accounts);
    report.add(Figure::new(
        format!("memory: {what}, at rest"),
        now,
        "MiB",
        Target::AtMost(100.0),
    ));
    report.add(Figure::new(
        format!("memory: {what}, at most (filling, then flat out)"),
        most,
        "MiB",
        Target::None,
    ));
}

fn restart(scale: u64, report: &mut Report) {
    let load = Load {
        accounts: 10_000 * scale,
        records: 3,
        even: true,
    };
    let mut bench = Bench::new(load);
    bench.start();
    let (cpu, began) = (bench.cpu(), Instant::now());
    bench.until_live(load.accounts);
    let (cpu, wall) = (bench.cpu() - cpu, began.elapsed().as_secs_f64());
    report.add(Figure::new(
        "accounts of 3 records fetched",
        load.accounts as f64 / cpu,
        "per CPU-s",
        Target::None,
    ));
    report.add(Figure::new(
        "accounts of 3 records fetched, wall",
        load.accounts as f64 / wall,
        "per s",
        Target::None,
    ));
    bench.stop();
    let took = bench.start();
    let name = format!("restart to serving, {} accounts", load.accounts);
    report.add(Figure::new(name, took.as_secs_f64(), "s", Target::AtMost(3.0)));
}
