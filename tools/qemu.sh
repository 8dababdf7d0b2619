#!/usr/bin/env bash
# Lets the kernel run programs of other CPUs by qemu, and what they start, until the machine is booted again. For root.
#
#   tools/qemu.sh CPU...    as qemu names it: s390x, aarch64, arm, riscv64, ppc64le
#
# Shared libraries are looked for below QEMU_LD_PREFIX.
set -euo pipefail

known=/proc/sys/fs/binfmt_misc
exec 9<"$0" && flock 9 # two at once would mount it twice
for cpu; do
    if ! [ -x "/usr/bin/qemu-$cpu-static" ]; then
        echo "$0: no qemu for $cpu: apt-get install qemu-user-static" >&2
        exit 1
    fi
    [ -e $known/register ] || mount -t binfmt_misc none $known
    # As Debian does it, or would if the machine had been booted since. F: the kernel has qemu open from now on.
    [ -e "$known/qemu-$cpu" ] ||
        sed -E "s#:[^:]*:[^:]*\$#:/usr/bin/qemu-$cpu-static:OCF#" "/usr/lib/binfmt.d/qemu-$cpu.conf" >$known/register
done
