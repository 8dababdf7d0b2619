#!/usr/bin/env bash
# Runs pytest with the extension module built with one of gcc's sanitizers, in a copy of this folder.
#
#   tools/sanitize.sh asan|ubsan|tsan [pytest's arguments]
#
# $PYTHON is the interpreter, .venv/bin/python if not given. It need not be instrumented: cffi and the binding drop
# the GIL, and TSan sees it. A free-threaded one must be, for TSan: tools/python.sh 314t-tsan.
set -euo pipefail
cd "$(dirname "$0")/.."

kind=${1:-} python=$(realpath -s "${PYTHON:-.venv/bin/python}")
case $kind in
asan) sanitizer=address ;;
ubsan) sanitizer='undefined -fno-sanitize-recover=all' ;;
tsan) sanitizer=thread ;;
*)
    echo "usage: $0 asan|ubsan|tsan [pytest's arguments]" >&2
    exit 2
    ;;
esac
shift

copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
tar cf - --exclude=./.git --exclude=./.venv --exclude=./build --exclude='*.so' . | tar xf - -C "$copy"
cd "$copy"
CC=gcc CFLAGS="-fsanitize=$sanitizer -fno-omit-frame-pointer -g -O1" LDFLAGS="-fsanitize=${sanitizer%% *}" \
    "$python" setup.py -q build_ext --inplace

preload=$(gcc -print-file-name="lib$kind.so")
[ "$kind" != asan ] || preload+=" $(gcc -print-file-name=libstdc++.so)" # which has to find asan's __cxa_throw
"$python" -c 'import sys, sysconfig; sys.exit("thread-sanitizer" not in sysconfig.get_config_var("CONFIG_ARGS"))' &&
    preload= # it has the runtime
settings=(
    "LD_PRELOAD=$preload"
    "PYTHONPATH=src${PYTHONPATH:+:$PYTHONPATH}"
    ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 # the interpreter's own, which it leaves to the system
    UBSAN_OPTIONS=print_stacktrace=1
)
[ "$kind" != asan ] || settings+=(PYTHONMALLOC=malloc) # so that Python's objects are watched as well
# -s: pytest would keep the reports for itself
env "${settings[@]}" "$python" -m pytest -s -q -p no:cacheprovider "$@"
