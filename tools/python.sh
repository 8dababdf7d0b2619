#!/usr/bin/env bash
# Builds a CPython 3.14 from source, once a machine, and prints the path of its interpreter as the last line.
#
#   tools/python.sh 314t         free-threaded
#   tools/python.sh 314t-tsan    the same, instrumented with ThreadSanitizer
#   tools/python.sh 314-musl     for musl, with zig: $PYTHON, .venv/bin/python if not given, has to have ziglang
#
# It stays in ${XDG_CACHE_HOME:-~/.cache}/shmem-providers. The source is that of Debian's package, taken from
# the repositories that this machine uses, or else from python.org. 4 minutes on 2 cores.
set -euo pipefail

kind=${1:-}
cache=${XDG_CACHE_HOME:-$HOME/.cache}/shmem-providers
prefix=$cache/py$kind
options=(--disable-test-modules --without-ensurepip -q) # its venv brings pip nevertheless
install=()

version=3.14.5
archive=$cache/python3.14_$version.orig.tar.xz
sum=7e32597b99e5d9a39abed35de4693fa169df3e5850d4c334337ffd6a19a36db6 # python.org's tarball has the same

case $kind in
314t) options+=(--disable-gil) ;;
314t-tsan)
    options+=(--disable-gil --with-thread-sanitizer CC=gcc)
    install+=(COMPILEALL_OPTS=--skip) # byte-compiling takes minutes under TSan; make goes on when it fails
    export TSAN_OPTIONS='report_bugs=0 exitcode=0'
    ;;
314-musl) zig="$(realpath -s "${PYTHON:-$(dirname "$0")/../.venv/bin/python}") -m ziglang" ;;
*)
    echo "usage: $0 314t|314t-tsan|314-musl" >&2
    exit 2
    ;;
esac

fail() {
    echo "$0: $1" >&2
    exit 1
}

check_tools() {
    local headers='#include <ffi.h>
#include <openssl/ssl.h>
#include <zlib.h>'
    if ! type apt-get curl make xz >/dev/null 2>&1 || ! gcc -E - <<<"$headers" >/dev/null 2>&1; then
        fail 'apt-get install build-essential curl xz-utils libffi-dev libssl-dev zlib1g-dev'
    fi
    [ "$kind" = 314-musl ] || return 0
    [ -e /lib/ld-musl-x86_64.so.1 ] || fail 'apt-get install musl'
    $zig version >/dev/null 2>&1 || fail 'pip install ziglang'
}

is_whole() { echo "$sum  $archive" | sha256sum -c --status 2>/dev/null; }

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

prepare_musl() {
    # -dynamic: else zig links musl into it, and there is no dlopen
    printf '%s\n' '#!/bin/sh' "exec $zig cc -target x86_64-linux-musl -dynamic \"\$@\" -Wno-date-time" >cc
    chmod +x cc
    mkdir include
    # Without glibc's, which are beside them.
    echo '#include <ffi.h>' | gcc -E -M - | grep -oE '/[^ ]*/ffi(target)?\.h' | xargs cp -t include
    options+=(
        --build=x86_64-linux-musl CC="$work/cc"
        CPP="$work/cc -E -D__DEFINED_va_list" # of musl's <stdarg.h>, not of zig's: how it knows musl
        PKG_CONFIG=/bin/false # else this machine's libraries are taken for musl's
        # For ctypes. Debian's asks for nothing that musl has not.
        LIBFFI_CFLAGS="-I$work/include" LIBFFI_LIBS="$(gcc -print-file-name=libffi_pic.a)"
        --disable-ipv6                               # the test of getaddrinfo fails
        ac_cv_func_preadv2=no ac_cv_func_pwritev2=no # zig's musl has them, the one that runs it may not
    )
}

compile() {
    [ "$kind" != 314-musl ] || prepare_musl
    "Python-$version/configure" --prefix="$prefix" "${options[@]}"
    make -s -j"$(nproc)"
    make -s install DESTDIR="$work/root" "${install[@]}"
}

build() {
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    log=$prefix.log
    tar xf "$archive" -C "$work"
    cd "$work"
    (compile) >"$log" 2>&1 & # in a condition -e would be off
    wait $! || fail "it does not build: see $log"
    "$work/root$prefix/bin/python3" -c 'import ctypes' || fail "it has no ctypes: see $log"
    rm -f "$log"
    mv "$work/root$prefix" "$prefix" # whole, or not at all
}

mkdir -p "$cache"
exec 9>"$prefix.lock"
flock 9 # somebody may be building it
if [ ! -x "$prefix/bin/python3" ]; then
    check_tools
    is_whole || download
    (build)
fi
echo "$prefix/bin/python3"
