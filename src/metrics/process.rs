//! What the kernel says about this process, read from `/proc/self` when the metrics are asked for.
//!
//! On a system without `/proc` every value stays zero.

#![allow(clippy::disallowed_methods, reason = "shell: reads /proc")]

use std::fs;

/// Clock ticks in a second as `/proc` counts them (`USER_HZ`): 100 on every Linux that Rust runs on.
const TICKS_PER_SECOND: f64 = 100.0;

/// A reading.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct ProcessReading {
    pub(super) cpu_seconds: f64,
    pub(super) start_time_seconds: f64,
    pub(super) resident_bytes: u64,
    pub(super) virtual_bytes: u64,
    pub(super) threads: u64,
    pub(super) open_fds: u64,
    pub(super) max_fds: u64,
}

/// Reads all of it; what cannot be read is zero.
pub(super) fn read() -> ProcessReading {
    let file = |name: &str| fs::read_to_string(format!("/proc/{name}")).unwrap_or_default();
    let (cpu_seconds, start_ticks) = parse_stat(&file("self/stat")).unwrap_or_default();
    let boot = field(&file("stat"), "btime").unwrap_or(0);
    let status = file("self/status");
    let kib = |name| field(&status, name).unwrap_or(0).saturating_mul(1024);
    #[expect(clippy::cast_precision_loss, reason = "seconds of a century fit in 52 bits")]
    ProcessReading {
        cpu_seconds,
        start_time_seconds: if boot == 0 {
            0.0
        } else {
            boot as f64 + start_ticks / TICKS_PER_SECOND
        },
        resident_bytes: kib("VmRSS:"),
        virtual_bytes: kib("VmSize:"),
        threads: field(&status, "Threads:").unwrap_or(0),
        // One of them is the directory itself, open while it is counted.
        open_fds: fs::read_dir("/proc/self/fd").map_or(0, |dir| (dir.count() as u64).saturating_sub(1)),
        max_fds: field(&file("self/limits"), "Max open files").unwrap_or(0),
    }
}

/// CPU seconds and the start time in ticks after boot. The second field is the program's name in
/// parentheses and may hold anything, so fields are counted from the last parenthesis.
fn parse_stat(text: &str) -> Option<(f64, f64)> {
    let (_, rest) = text.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    // proc(5): utime is field 14, stime 15, starttime 22; `rest` begins with field 3.
    let number = |index: usize| fields.get(index)?.parse::<f64>().ok();
    Some(((number(11)? + number(12)?) / TICKS_PER_SECOND, number(19)?))
}

/// The first number after `name` at the beginning of a line.
fn field(text: &str, name: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    rest.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_behind_a_hostile_program_name() {
        let stat = "7 (a ) b) S 1 2 3 4 5 6 7 8 9 10 250 50 0 0 20 0 9 0 12345 1 2";
        assert_eq!(parse_stat(stat), Some((3.0, 12345.0)));
        assert_eq!(parse_stat("7 (cut"), None);
        assert_eq!(parse_stat("7 (cut) S 1"), None);
        assert_eq!(field("VmSize:\t 10 kB\nVmRSS:\t 5 kB\n", "VmRSS:"), Some(5));
        assert_eq!(
            field("Max open files            1024 4096 files", "Max open files"),
            Some(1024)
        );
        assert_eq!(field("VmRSS: unlimited", "VmRSS:"), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_process_has_a_size_and_threads() {
        let reading = read();
        assert!(reading.resident_bytes > 1 << 20 && reading.threads >= 1 && reading.open_fds >= 3);
        assert!(reading.start_time_seconds > 1.7e9);
    }
}
