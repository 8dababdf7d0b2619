#!/usr/bin/env bash
# The tests that run where /dev/ashmem is: over the ashmem provider, a service of it, and "std" as Android has it.
#
#   tests/ashmem.sh BUILD PYTHON     the former is what tests/c/run.sh build made, the latter has this package and pytest
set -uo pipefail
cd "$(dirname "$0")/.." || exit
build=$1 python=$2
failed=()

run() {
    local start=$SECONDS
    echo "--- ${*##*/}"
    "$@" || failed+=("${*##*/}")
    echo "$((SECONDS - start)) s"
}

export SHMP_32_BITS=$build/test_machines_32.exe
for program in conformance handles machines; do
    run "$build/test_$program.exe" '' ashmem
    run "$build/test_${program}_32.exe" '' ashmem
done
run "$build/test_conformance.exe" '' 'rc(served(ashmem))'
run "$build/test_handles.exe" '' 'rc(served(ashmem))'
run "$build/test_conformance_std.exe" '' std
run "$build/test_faults.exe" 'ashmem '
run "$build/test_faults.exe" ashmem/fd_ids
# but for what is a matter of time: the guest is 20 times slower
run "$python" -m pytest -q -p no:cacheprovider -k 'ashmem and not held_up_by_little' --durations=5 tests/conformance \
    tests/test_fork.py tests/test_handover.py tests/reliability/test_kills.py tests/interop/test_seed.py
[ ${#failed[@]} -eq 0 ] || printf 'failed: %s\n' "${failed[@]}"
exit ${#failed[@]}
