#!/usr/bin/env bash
# Builds the C tests with zig for other CPUs and for musl, and runs them: directly, or by qemu as root.
#
#   tools/foreign_c.sh            all of the table below
#   tools/foreign_c.sh TARGET...  these
#
# $PYTHON, .venv/bin/python if not given, has to have ziglang.
set -euo pipefail
cd "$(dirname "$0")/.."

# qemu's name of the CPU, -: this machine runs it; what it needs of Debian's packages; flags, as in tools/wheel.sh
targets='
    x86-linux-gnu.2.28           -        libc6-i386
    x86_64-linux-musl            -        -
    arm-linux-gnueabihf.2.31     arm      libc6-armhf-cross
    riscv64-linux-gnu.2.31       riscv64  libc6-riscv64-cross
    aarch64-linux-gnu.2.28       aarch64  libc6-arm64-cross
    powerpc64le-linux-gnu.2.28   ppc64le  libc6-ppc64el-cross  -mabi=ibmlongdouble
    s390x-linux-gnu.2.28         s390x    libc6-s390x-cross
'

compiler="${PYTHON:-.venv/bin/python} -m ziglang cc"
while read -r target cpu package flags; do
    case " ${*:-$target} " in *" $target "*) ;; *) continue ;; esac
    if [ "$package" != - ] && ! dpkg-query -W "$package" >/dev/null 2>&1; then
        echo "$0: apt-get install $package" >&2
        exit 1
    fi
    echo "$target"
    if [ "$cpu" = - ]; then
        tests/c/run.sh "$compiler -target $target $flags" plain
    else
        tools/qemu.sh "$cpu"
        QEMU_LD_PREFIX=/usr/${target%%.*} tests/c/run.sh "$compiler -target $target $flags" emulated
    fi </dev/null | grep -v '^skip'
done <<<"$(sed '/^$/d' <<<"$targets")"
