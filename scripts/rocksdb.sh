# shellcheck shell=bash
# RocksDB, compiled at most once a machine: from the bundled sources of the crate it takes 37 CPU-minutes.
# Read by lib.sh. Sets ROCKSDB_LIB_DIR to the folder of a librocksdb.a that fits Cargo.lock.

locked_version() { sed -n "/^name = \"$1\"\$/{n;s/^version = \"\(.*\)\"/\1/p}" "$root/Cargo.lock"; }

# What a library must have been built from to be used: one line, kept beside it.
rocksdb_identity() {
    local features
    features="$(sed -n 's/^rocksdb = .*features = \[\([^]]*\)\].*/\1/p' "$root/Cargo.toml" | tr -d '" ' | tr ',' '\n' | sort | paste -sd ,)"
    [ -n "$features" ] || die "the line of rocksdb in Cargo.toml is not what scripts/rocksdb.sh expects"
    printf 'librocksdb-sys %s features %s %s' "$(locked_version librocksdb-sys)" "$features" "$(uname -m)"
}

need_rocksdb() {
    local identity
    if [ -n "${ROCKSDB_LIB_DIR:-}" ]; then
        [ -e "$ROCKSDB_LIB_DIR/librocksdb.a" ] || die "ROCKSDB_LIB_DIR is $ROCKSDB_LIB_DIR, and there is no librocksdb.a in it"
        return 0
    fi
    identity="$(rocksdb_identity)" || exit 1
    ROCKSDB_LIB_DIR="$cache/rocksdb"
    mkdir -p "$ROCKSDB_LIB_DIR"
    rocksdb_is_there "$identity" && return 0
    command -v flock >/dev/null || die "this machine lacks the flock program (Debian package util-linux)"
    exec 9>"$ROCKSDB_LIB_DIR/lock"
    flock -n 9 || until flock -w 60 9; do say "another build of RocksDB is under way in $cache; waiting for it"; done
    rocksdb_is_there "$identity" || rocksdb_adopted "$identity" || rocksdb_unpacked "$identity" || rocksdb_compiled "$identity"
    exec 9>&-
}

rocksdb_is_there() {
    [ -e "$ROCKSDB_LIB_DIR/librocksdb.a" ] && [ "$(cat "$ROCKSDB_LIB_DIR/built-from" 2>/dev/null)" = "$1" ]
}

# The line of the prebuilt library's description that is about the crate and its features.
prebuilt_fits() { # identity
    local text="$shared/rocksdb/librocksdb.txt" features
    [ -e "$text" ] && [ "$(uname -m)" = x86_64 ] || return 1
    features="$(sed -n 's/^crate rocksdb .* features //p' "$text" | tr ',' '\n' | sort | paste -sd ,)"
    [ "$1" = "librocksdb-sys $(sed -n 's/^version = "\(.*\)"/\1/p' "$text") features $features x86_64" ]
}

prebuilt_checksum() { sed -n "s/^\([0-9a-f]\{64\}\)  $1\$/\1/p" "$shared/rocksdb/librocksdb.txt"; }

# A library without a stamp that is, byte for byte, the prebuilt one.
rocksdb_adopted() {
    local library="$ROCKSDB_LIB_DIR/librocksdb.a"
    [ -e "$library" ] && prebuilt_fits "$1" || return 1
    [ "$(sha256sum <"$library" | cut -c 1-64)" = "$(prebuilt_checksum librocksdb.a)" ] || return 1
    printf '%s\n' "$1" >"$ROCKSDB_LIB_DIR/built-from"
}

rocksdb_unpacked() {
    local packed="$shared/rocksdb/librocksdb.a.xz" fresh="$ROCKSDB_LIB_DIR/librocksdb.a.new"
    [ -e "$packed" ] && prebuilt_fits "$1" || return 1
    say "unpacking the compiled RocksDB from $(cd "$shared" && pwd)/rocksdb"
    xz -dkc "$packed" >"$fresh" || { rm -f "$fresh"; return 1; }
    if [ "$(sha256sum <"$fresh" | cut -c 1-64)" != "$(prebuilt_checksum librocksdb.a)" ]; then
        rm -f "$fresh"
        say "the compiled RocksDB in $shared/rocksdb is damaged (its checksum differs); compiling it here instead"
        return 1
    fi
    rocksdb_keep "$fresh" "$1"
}

# Puts a complete library in place. The stamp goes first and comes last, so that it never vouches for another one.
rocksdb_keep() { # library, identity
    rm -f "$ROCKSDB_LIB_DIR/built-from"
    mv -f "$1" "$ROCKSDB_LIB_DIR/librocksdb.a"
    printf '%s\n' "$2" >"$ROCKSDB_LIB_DIR/built-from"
}

rocksdb_compiled() {
    local folder="$cache/rocksdb-build" log="$logs/rocksdb.log" library
    say "compiling RocksDB from source, once for this machine: 20 to 25 minutes on 2 cores (log: $log)"
    rm -rf "$folder"
    mkdir -p "$folder"
    # The package is built as a part of the whole project, so with the features that the project asks of it.
    progress=rocksdb_progress with_heartbeat RocksDB "$log" \
        env -u ROCKSDB_LIB_DIR -u ROCKSDB_STATIC CARGO_PROFILE_RELEASE_DEBUG=0 \
        cargo build --manifest-path "$root/Cargo.toml" --release --locked -p librocksdb-sys --target-dir "$folder" \
        || { tail -n 20 "$log" >&2; die "RocksDB could not be compiled; the log is $log"; }
    library="$(find "$folder/release/build" -path '*/librocksdb-sys-*/out/librocksdb.a' | head -n 1)"
    [ -n "$library" ] || die "the build of RocksDB left no librocksdb.a in $folder"
    rocksdb_keep "$library" "$1"
    rm -rf "$folder"
    say "RocksDB is compiled, and kept in $ROCKSDB_LIB_DIR"
}

rocksdb_progress() {
    printf '%s of about 343 files' "$(find "$cache/rocksdb-build" -path '*/librocksdb-sys-*' -name '*.o' 2>/dev/null | wc -l)"
}
