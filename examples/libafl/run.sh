#!/usr/bin/env bash
# Builds the example, and compares LibAFL on shmem_providers with LibAFL on its own provider.
#
#   run.sh [ROUNDS]      1; of more, the best figures count
#
# It needs cargo with Rust 1.93.1 or later, and the C library: $SHMEM_PROVIDERS_LIBS has the flags that link it, or
# pkg-config or `python3 -m shmem_providers --libs` know them. It runs in namespaces of its own, so that it sees only its
# own segments, processes and names, and what LibAFL's own provider leaves goes with them.
set -euo pipefail
cd "$(dirname "$0")"

cargo build --release --locked --quiet
program=${CARGO_TARGET_DIR:-target}/release/libafl_on_shmem_providers
namespaces=(--mount --ipc --pid --fork --mount-proc --kill-child)
[ "$(id -u)" = 0 ] || namespaces+=(--user --map-root-user)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# shellcheck disable=SC2016 # the inner shell's to expand
TMPDIR=$work unshare "${namespaces[@]}" sh -c 'mount -t tmpfs tmpfs /dev/shm && "$@"; exit $?' - \
    "$(realpath "$program")" compare "$@"
