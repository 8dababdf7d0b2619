#!/usr/bin/env bash
# Builds a free-threaded CPython, once a machine, and prints the path of its interpreter as the last line.
#
#   tools/python314t.sh [plain|tsan]     tsan: instrumented with ThreadSanitizer
#
# It stays in ${XDG_CACHE_HOME:-~/.cache}/shmem-providers. The source is that of Debian's package, taken from
# the repositories that this machine uses, or else from python.org. 4 minutes on 2 cores.
set -euo pipefail

kind=${1:-plain}
cache=${XDG_CACHE_HOME:-$HOME/.cache}/shmem-providers
version=3.14.5
archive=$cache/python3.14_$version.orig.tar.xz
sum=7e32597b99e5d9a39abed35de4693fa169df3e5850d4c334337ffd6a19a36db6 # python.org's tarball has the same
options=(--disable-gil --disable-test-modules --without-ensurepip -q) # its venv brings pip nevertheless
install=()
case $kind in
plain) prefix=$cache/py314t ;;
tsan)
    prefix=$cache/py314t-tsan
    options+=(--with-thread-sanitizer CC=gcc)
    install+=(COMPILEALL_OPTS=--skip) # byte-compiling takes minutes under TSan; make goes on when it fails
    export TSAN_OPTIONS='report_bugs=0 exitcode=0'
    ;;
*)
    echo "usage: $0 [plain|tsan]" >&2
    exit 2
    ;;
esac

fail() {
    echo "$0: $1" >&2
    exit 1
}

is_whole() { echo "$sum  $archive" | sha256sum -c --status 2>/dev/null; }

check_tools() {
    local headers='#include <ffi.h>
#include <openssl/ssl.h>
#include <zlib.h>'
    if ! type apt-get curl make xz >/dev/null 2>&1 || ! gcc -E - <<<"$headers" >/dev/null 2>&1; then
        fail 'apt-get install build-essential curl xz-utils libffi-dev libssl-dev zlib1g-dev'
    fi
}

download() {
    local repository
    # shellcheck disable=SC2016 # $(REPO_URI) is apt's to expand
    for repository in $(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | sort -u); do
        curl -fsSL -o "$archive" "${repository%/}/pool/main/p/python3.14/${archive##*/}" 2>/dev/null || continue
        is_whole && return
    done
    curl -fsSL --connect-timeout 10 -o "$archive" "https://www.python.org/ftp/python/$version/Python-$version.tar.xz" || true
    is_whole || fail "neither python.org nor a repository of this machine has ${archive##*/}: put that file into $cache"
}

build() {
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    log=$cache/${prefix##*/}.log
    tar xf "$archive" -C "$work"
    cd "$work"
    { "Python-$version/configure" --prefix="$prefix" "${options[@]}" &&
        make -s -j"$(nproc)" &&
        make -s install DESTDIR="$work/root" "${install[@]}"; } >"$log" 2>&1 || fail "it does not build: see $log"
    rm -f "$log"
    mv "$work/root$prefix" "$prefix" # whole, or not at all
}

if [ ! -x "$prefix/bin/python3.14t" ]; then
    check_tools
    mkdir -p "$cache"
    is_whole || download
    (build)
fi
echo "$prefix/bin/python3.14t"
