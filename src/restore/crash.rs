#![allow(
    clippy::disallowed_methods,
    reason = "shell: the environment, and our own process"
)]
//! Where a test ends a restore, or has it wait.

/// In debug builds `RESTORE_CRASH_AT` ends the process here, as a crash would, and `RESTORE_STOP_AT` has it wait for
/// SIGCONT, so that something else can happen meanwhile.
pub(super) fn crash_point(name: &str) {
    #[cfg(debug_assertions)]
    {
        let asked = |variable: &str| std::env::var(variable).is_ok_and(|at| at == name);
        if asked("RESTORE_CRASH_AT") {
            std::process::exit(99);
        }
        static STOPPED: std::sync::atomic::AtomicBool = std::sync::atomic::AtomicBool::new(false);
        if asked("RESTORE_STOP_AT") && !STOPPED.swap(true, std::sync::atomic::Ordering::SeqCst) {
            let own = rustix::process::getpid();
            rustix::process::kill_process(own, rustix::process::Signal::STOP).expect("it is our own");
        }
    }
    let _ = name;
}
