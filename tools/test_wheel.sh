#!/usr/bin/env bash
# Runs the tests with one of the wheels of build/wheels, installed where nothing else is.
#
#   tools/test_wheel.sh 3.11|3.12|3.13 [pytest's arguments]    this machine's, or pyenv's; status 3: it has none
#   tools/test_wheel.sh musl [pytest's arguments]              tools/python.sh 314-musl
#   tools/test_wheel.sh s390x|arm64 [pytest's arguments]       tools/foreign_python.sh: qemu emulates the CPU
#
# tools/wheel.sh has built the wheel. $PIP_PYTHON, .venv/bin/python if not given, is the Python whose pip installs it.
set -euo pipefail
cd "$(dirname "$0")/.."

kind=${1:-}
pip=("${PIP_PYTHON:-.venv/bin/python}" -m pip)
requirements=('shmem_providers[test]')
# Root's run has segments of its own, so that two can go at once.
# shellcheck disable=SC2016 # the inner shell's to expand
apart=(unshare --mount --ipc sh -c 'mount -t tmpfs -o mode=1777 none /dev/shm && exec "$@"' sh)
[ "$(id -u)" -eq 0 ] || apart=()

find_python() {
    local python
    for python in "python$1" "${PYENV_ROOT:-$HOME/.pyenv}/versions/$1".*/bin/python; do
        ! "$python" -c '' 2>/dev/null || { echo "$python" && return; }
    done
    echo "$0: no Python $1 on this machine" >&2
    exit 3
}

emulate() { # emulate CPU
    QEMU_LD_PREFIX=$(tools/foreign_python.sh "$1" | tail -n 1)
    export QEMU_LD_PREFIX
    python=$QEMU_LD_PREFIX/usr/bin/python3
}

# SHMP_LACKS: what tests/conftest.py shall not ask for. Providers that wrap others are tested with this machine's Python.
export SHMP_PLAIN=1
case $kind in
3.*) python=$(find_python "$kind") platform=manylinux_2_28_x86_64 ;;
musl)
    python=$(tools/python.sh 314-musl | tail -n 1) platform=musllinux_1_2_x86_64
    export SHMP_LACKS='compiler numpy'
    ;;
arm64)
    emulate arm64
    platform=manylinux_2_28_aarch64
    export SHMP_LACKS='compiler cpu'
    ;;
s390x)
    emulate s390x
    platform=manylinux_2_28_s390x
    export SHMP_LACKS='compiler cpu numpy'
    ;;
*)
    echo "usage: $0 3.11|3.12|3.13|musl|s390x|arm64 [pytest's arguments]" >&2
    exit 2
    ;;
esac
shift
case ${SHMP_LACKS-} in
*numpy*) requirements=('shmem_providers[cli]' 'pkgconf>=2.5' 'pytest>=8' 'setuptools>=77') ;;
esac

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$python" -m venv --without-pip "$work"
python=$work/bin/python
# pip looks for older tags only if it is told their names.
selection=(--platform "$platform" --platform "${platform/_2_28/_2_17}" --only-binary=:all: --implementation cp
    --python-version "$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')"
    --target "$("$python" -c 'import sysconfig; print(sysconfig.get_path("platlib"))')")
"${pip[@]}" install -q --find-links build/wheels "${selection[@]}" --no-compile "${requirements[@]}"
# What was compiled once is not compiled again by every child.
"${apart[@]}" env -u PYTHONDONTWRITEBYTECODE "$python" -m pytest -q -p no:cacheprovider \
    --ignore=tests/interop --ignore=tests/service "$@"
