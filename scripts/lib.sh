# shellcheck shell=bash
# What the scripts share: where things lie, what the machine must have, how to run cargo. Read with `source`.
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

say() { printf 'firekeep: %s\n' "$*" >&2; }
die() { printf 'firekeep: %s\n' "$*" >&2; exit 1; }

[ -n "${FIREKEEP_CACHE:-}${HOME:-}" ] || die "neither HOME nor FIREKEEP_CACHE is set: set FIREKEEP_CACHE to a folder for what is built"
# All that is built or installed for the project lies here, outside the checkout.
cache="${FIREKEEP_CACHE:-$HOME/.cache/firekeep}"
case "$cache" in /*) ;; *) cache="$PWD/$cache" ;; esac
# Things that may stand beside the checkout: test vectors, the compiled RocksDB.
shared="$root/../shared"
sandbox="$root/deploy/sandbox/sandbox"
# Logs of what the scripts run, apart for each checkout.
logs="$cache/logs/$(basename "$root")-$(printf '%s' "$root" | cksum | cut -d ' ' -f 1)"
mkdir -p "$logs"
# The oldest Rust that builds the project (Cargo.toml's rust-version), and the one that it is tested with.
rust_least=1.95
rust_pinned="$(sed -n 's/^channel = "\(.*\)"/\1/p' "$root/rust-toolchain.toml")"

minutes() { printf '%d:%02d' $(($1 / 60)) $(($1 % 60)); }

# Runs a command with its output in a log, and says each minute that it still works on it. The command has a
# process group of its own, so that all of it can be stopped.
with_heartbeat() { # what, log, command...
    local what="$1" log="$2" began="$SECONDS" next=$((SECONDS + 60)) code=0
    shift 2
    mkdir -p "$(dirname "$log")"
    set -m
    "$@" >"$log" 2>&1 </dev/null 8>&- 9>&- &
    child=$!
    set +m
    while kill -0 "$child" 2>/dev/null; do
        sleep 0.2
        if [ "$SECONDS" -ge "$next" ]; then
            next=$((SECONDS + 60))
            say "  $what, $(minutes $((SECONDS - began))) so far: $("${progress:-last_line}" "$log")"
        fi
    done
    wait "$child" || code=$?
    child=
    return "$code"
}

last_line() { tail -c 2000 "$1" | tr '\r' '\n' | sed 's/\x1b\[[0-9;]*m//g; s/^[[:space:]]*//; /^$/d' | tail -n 1 | cut -c 1-100; }

# An interrupted script takes what it runs with it.
child=
stop_child() { [ -z "$child" ] || kill -- "-$child" 2>/dev/null || true; }
trap 'stop_child; exit 130' INT
trap 'stop_child; exit 143' TERM

# ---- Debian packages ----

missing_packages=()
need() { # package, test...
    local package="$1"
    shift
    "$@" >/dev/null 2>&1 || missing_packages+=("$package")
}

has() { command -v "$1"; }
has_libclang() {
    [ -z "${LIBCLANG_PATH:-}" ] || return 0
    # The library alone does not do: bindgen needs the compiler's own headers too.
    { compgen -G '/usr/lib/llvm-*/lib/libclang*.so*' && compgen -G '/usr/lib/llvm-*/lib/clang/*/include/stddef.h'; } \
        || { command -v clang && ! command -v apt-get; }
}
has_certificates() { [ -n "${SSL_CERT_FILE:-}" ] || [ -s /etc/ssl/certs/ca-certificates.crt ] || [ -d /etc/pki/tls ]; }
has_venv() { python3 -c 'import venv, ensurepip'; }

need_for_building() {
    need build-essential eval 'has cc && has c++ && has make'
    need libclang-dev has_libclang
    need ca-certificates has_certificates
    [ ! -e "$shared/rocksdb/librocksdb.a.xz" ] || need xz-utils has xz
}

need_for_sandbox() {
    need nodejs has node
    need npm has npm
    need python3 has python3
    need python3-venv has_venv
    need zstd has zstd
    need util-linux has flock
}

# Installs what was found missing. As root, or with sudo; otherwise it names the command and stops.
install_packages() {
    [ ${#missing_packages[@]} -gt 0 ] || return 0
    local as=() list="${missing_packages[*]}"
    command -v apt-get >/dev/null \
        || die "this machine lacks $list (names of Debian packages), and has no apt-get: install them, then run this again"
    if [ "$(id -u)" != 0 ]; then
        # Where there is no terminal, sudo must not wait for a password.
        if command -v sudo >/dev/null && { [ -t 0 ] || sudo -n true 2>/dev/null; }; then
            as=(sudo)
        else
            die "this machine lacks $list; run: sudo apt-get update && sudo apt-get install -y $list"
        fi
    fi
    say "installing Debian packages with apt-get: $list"
    local log="$logs/apt.log"
    { "${as[@]}" apt-get update -q \
        && "${as[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${missing_packages[@]}"; } \
        >"$log" 2>&1 </dev/null \
        || { tail -n 15 "$log" >&2; die "apt-get could not install $list (log: $log)"; }
    missing_packages=()
    hash -r
}

# ---- Rust ----

# Whether a version such as 1.96.1 is at least rust_least.
rust_suffices() {
    [ -n "$1" ] && [ "$(printf '%s\n%s\n' "$rust_least" "$1" | sort -V | head -n 1)" = "$rust_least" ]
}

# Outside of the checkout: so rust-toolchain.toml does not count, and nothing is downloaded.
rust_version() { (cd / && rustc --version 2>/dev/null | sed -n 's/^rustc \([0-9.]*\).*/\1/p'); }

need_rust() {
    command -v rustc >/dev/null || PATH="$PATH:${CARGO_HOME:-${HOME:-}/.cargo}/bin"
    local rustup_line="curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y --profile minimal"
    if ! command -v rustc >/dev/null && ! command -v rustup >/dev/null; then
        if command -v apt-cache >/dev/null && apt-cache policy rustup 2>/dev/null | grep -q 'Candidate: [0-9]'; then
            need rustup has rustup # Debian 13 and later have it
            install_packages
        else
            die "this machine has no Rust (>= $rust_least); run: $rustup_line"
        fi
    fi
    if command -v rustup >/dev/null; then
        rustup_toolchain
    elif ! rust_suffices "$(rust_version)"; then
        die "Rust $(rust_version) is too old, $rust_least or later is needed; run: $rustup_line"
    fi
    command -v cargo >/dev/null || die "there is a rustc, but no cargo; run: $rustup_line"
}

# The pinned toolchain if it is there; else the default one if it is new enough; else the pinned one is fetched.
rustup_toolchain() {
    [ -z "${RUSTUP_TOOLCHAIN:-}" ] || return 0
    if rustup toolchain list 2>/dev/null | grep -q "^$rust_pinned-"; then
        return 0
    fi
    if rust_suffices "$(rust_version)"; then
        RUSTUP_TOOLCHAIN="$(cd / && rustup show active-toolchain | cut -d ' ' -f 1)"
        export RUSTUP_TOOLCHAIN
        say "using the installed Rust $(rust_version) (the project is tested with $rust_pinned)"
        return 0
    fi
    say "installing Rust $rust_pinned with rustup"
    rustup toolchain install "$rust_pinned" --profile minimal --component rustfmt --component clippy --no-self-update >&2 \
        || die "rustup could not install Rust $rust_pinned; run: rustup toolchain install $rust_pinned"
}

need_rust_component() { # program, component
    cargo "$1" --version >/dev/null 2>&1 && return 0
    say "installing the Rust component $2"
    (cd "$root" && rustup component add "$2") >&2 \
        || die "this Rust has no $2; run: rustup component add $2"
}

# ---- cargo ----

cargo_environment() {
    export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$cache/target}"
    export CARGO_TERM_COLOR="${CARGO_TERM_COLOR:-never}"
    cd "$root"
    need_rocksdb
    # The same two values in every build: whenever they change, cargo starts over.
    export ROCKSDB_LIB_DIR ROCKSDB_STATIC=1
    forget_other_checkout
}

# Cargo tells sources by their times, not by their folder: in a target folder that another checkout built into,
# it would run the other one's tests. What the dependencies left is kept.
forget_other_checkout() {
    local stamp="$CARGO_TARGET_DIR/built-for-checkout" profile
    if [ "$(cat "$stamp" 2>/dev/null)" != "$root" ]; then
        for profile in dev release; do
            [ ! -d "$CARGO_TARGET_DIR/${profile/dev/debug}" ] || cargo clean --quiet --locked --package firekeep --profile "$profile"
        done
        mkdir -p "$CARGO_TARGET_DIR"
        printf '%s\n' "$root" >"$stamp"
    fi
}

# The program as people run it: the release profile, which leaves link-time optimisation to what is shipped.
build_program() {
    program="$CARGO_TARGET_DIR/release/firekeep"
    FIREKEEP_COMMIT="$(git rev-parse --short=12 HEAD 2>/dev/null || echo unknown)"
    export FIREKEEP_COMMIT
    local build=(cargo build --locked --release --bin firekeep) log="$logs/build.log"
    [ -x "$program" ] || say "building firekeep: 5 to 10 minutes the first time on 2 cores, then about one"
    if [ -t 2 ]; then
        "${build[@]}" >&2 || die "firekeep could not be built"
    else
        with_heartbeat "building firekeep" "$log" "${build[@]}" \
            || { tail -n 30 "$log" >&2; die "firekeep could not be built (log: $log)"; }
    fi
}

# shellcheck source=scripts/rocksdb.sh
source "$root/scripts/rocksdb.sh"
