#!/usr/bin/env bash
# Runs a command under a kernel that has Android's /dev/ashmem: Debian 11's, in a guest of QEMU, which needs no KVM.
#
#   tools/ashmem_vm.sh COMMAND [ARGUMENT...]     in this folder, as root; the first time 55 MB are downloaded
#
# The guest's files are this machine's, so that all programs, environments and builds are there, at their paths. What
# it writes is gone with it. Output comes when it is written, stdout and stderr together. The exit status is the
# command's; 124: it took longer than $VM_TIMEOUT seconds (600); 125: the guest ended without one. The command sees
# PATH, HOME, LANG, and what begins with SHMP_. $VM_MEMORY is in MiB (6144; what is not touched is not taken).
# VM_CLOCK=instructions has the guest's clock count those, so that what is measured is the same on a busy machine.
#
# For root on x86-64 Debian or Ubuntu with qemu-system-x86, busybox-static, debian-archive-keyring and xz-utils. All of
# this machine that its caller can read can be read in the guest: run only what could run here.
# The kernel is kept in ${XDG_CACHE_HOME:-~/.cache}/shmem-providers/ashmem. Remove that when what the guest begins with
# has changed here.
set -euo pipefail

kernel=5.10.0-32-amd64 # of the last Debian whose kernel has the driver
modules=(ashmem_linux virtio_pci 9pnet_virtio 9p overlay)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/shmem-providers/ashmem

fail() {
    echo "$0: $1" >&2
    exit 1
}

[ $# -gt 0 ] || fail 'usage: tools/ashmem_vm.sh COMMAND [ARGUMENT...]'
[ "$(uname -m)" = x86_64 ] || fail 'needs an x86-64 machine: the guest runs its programs'
[ "$(id -u)" = 0 ] || fail 'needs root: the guest has the files that its caller can read'
type qemu-system-x86_64 busybox xz dpkg apt-get >/dev/null 2>&1 ||
    fail 'apt-get install qemu-system-x86 busybox-static debian-archive-keyring xz-utils'

# Where Debian 11 is: $VM_MIRROR, or where this machine has its own packages from
mirrors() {
    [ -z "${VM_MIRROR-}" ] || echo "$VM_MIRROR"
    # shellcheck disable=SC2016 # apt's to expand
    apt-get indextargets --format '$(REPO_URI)' 'Origin: Debian' 'Label: Debian' 2>/dev/null | sort -u
}

# download FOLDER: puts the kernel's package there, with lists and a state of apt's own
download() {
    local uri apt=(apt-get -qq -o "Dir::State=$1/apt" -o "Dir::State::Lists=$1/apt/lists" -o "Dir::Cache=$1/apt/cache"
        -o "Dir::State::Status=$1/apt/status" -o "Dir::Etc::SourceList=$1/apt/sources" -o Dir::Etc::SourceParts=/dev/null
        -o APT::Sandbox::User=root -o Acquire::Check-Valid-Until=false -o Acquire::Languages=none)
    mkdir -p "$1/apt/lists/partial" "$1/apt/cache/archives/partial"
    : >"$1/apt/status"
    for uri in $(mirrors); do
        echo "deb [arch=amd64 signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $uri bullseye main" >"$1/apt/sources"
        if "${apt[@]}" update && (cd "$1" && "${apt[@]}" download "linux-image-$kernel-unsigned"); then return; fi
    done >&2
    fail "no mirror has linux-image-$kernel-unsigned of Debian 11: set VM_MIRROR to one, such as Debian's archive"
}

# What the guest begins with: its modules, and this machine's files with a layer in memory above
# shellcheck disable=SC2329 # the guest calls it
first_steps() {
    /bin/busybox --install -s /bin
    mount -t devtmpfs dev /dev && mount -t proc proc /proc && mount -t sysfs sys /sys
    exec </dev/null >/dev/ttyS0 2>&1
    stty -F /dev/ttyS0 raw -echo
    stty -F /dev/ttyS1 raw -echo
    for module in $WANTED; do modprobe "$module" || reboot -f; done
    mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,cache=loose,ro files /files || reboot -f
    mount -t tmpfs -o size=75% layer /layer && mkdir /layer/new /layer/work
    mount -t overlay -o lowerdir=/files,upperdir=/layer/new,workdir=/layer/work root /root || reboot -f
    # as Android does: open to all, and a second node that is called after the boot
    chmod 666 /dev/ashmem
    # shellcheck disable=SC2046 # two words
    mknod -m 666 "/dev/ashmem$(cat /proc/sys/kernel/random/boot_id)" c $(tr : ' ' </sys/class/misc/ashmem/dev)
    ln -s /proc/self/fd /dev/fd && ln -s fd/0 /dev/stdin && ln -s fd/1 /dev/stdout && ln -s fd/2 /dev/stderr
    mkdir -p /dev/pts /dev/shm /dev/mqueue
    mount -t devpts -o mode=620,ptmxmode=666 pts /dev/pts
    mount -t tmpfs -o mode=1777 shm /dev/shm
    mount -t mqueue queues /dev/mqueue
    ip link set lo up
    for folder in dev proc sys; do mount --move "/$folder" "/root/$folder"; done
    exec switch_root /root /bin/bash "$job/next" # `job` is in the kernel's command line
}

# Makes the two files that QEMU starts: the kernel unpacked, which saves 3 s a boot, and the first file system
prepare() {
    local new=$cache/new module file at modules_of=lib/modules/$kernel
    rm -rf "$new"
    mkdir -p "$new/first"/{bin,dev,proc,sys,files,layer,root}
    download "$new"
    cd "$new"
    dpkg --fsys-tarfile linux-image-*.deb | tar -x --wildcards './boot/vmlinuz-*' '*/staging/android/*' \
        '*/drivers/virtio/*' '*/net/9p/*' '*/fs/9p/*' '*/fs/fscache/*' '*/fs/overlayfs/*'
    busybox depmod -b "$new" "$kernel" # the package leaves that to its installation
    for module in "${modules[@]}"; do
        sed -n "s,:, ,; \,/$module\.ko ,p" "$modules_of/modules.dep"
    done | xargs -n 1 | while read -r file; do install -D "$modules_of/$file" "first/$modules_of/$file"; done
    cp "$modules_of/modules.dep" "first/$modules_of/"
    cp "$(type -P busybox)" first/bin/busybox
    ln -s busybox first/bin/sh
    printf '#!/bin/sh\n%s\nWANTED="%s" first_steps\n' "$(declare -f first_steps)" "${modules[*]}" >first/init
    chmod +x first/init
    (cd first && find . | busybox cpio -o -H newc 2>/dev/null) | gzip -1 >initrd
    at=$(LC_ALL=C grep -abom1 -P '\xfd7zXZ\x00' boot/vmlinuz-* | head -n 1 | cut -d: -f1)
    tail -c "+$((at + 1))" boot/vmlinuz-* | xz -dcq >vmlinux 2>/dev/null || : # it complains of what follows
    [ "$(head -c 4 vmlinux | tail -c 3)" = ELF ] || fail 'the kernel could not be unpacked'
    cd "$OLDPWD"
    mv "$new/vmlinux" "$new/initrd" "$cache/"
    rm -rf "$new"
}

# The second part, in this machine's files: the command, and then the end of the machine
# shellcheck disable=SC2016 # the guest's to expand
next_steps() {
    local name
    for name in PATH HOME LANG "${!SHMP_@}"; do [ -z "${!name+x}" ] || printf 'export %s=%q\n' "$name" "${!name}"; done
    printf 'unset job WANTED; export TERM=dumb; ulimit -n %q\n' "$(ulimit -n)"
    echo 'mkfifo /run/output; cat /run/output >/dev/ttyS0 & output=$!'
    printf '(cd %q && exec' "$PWD"
    printf ' %q' "$@"
    echo ') </dev/null >/run/output 2>&1; status=$?'
    # what is still to be written, but not for ever: somebody may have been left behind who has the pipe open
    echo 'for i in $(seq 25); do kill -0 $output 2>/dev/null || break; sleep 0.1; done'
    echo 'echo $status >/dev/ttyS1; stty -F /dev/ttyS0 raw; stty -F /dev/ttyS1 raw' # which waits until all is out
    echo 'printf 0 | dd of=/dev/port bs=1 seek=1281 2>/dev/null'                    # QEMU's isa-debug-exit
}

mkdir -p "$cache"
exec 9>"$cache/lock"
flock 9
[ -s "$cache/initrd" ] || prepare
flock -u 9
exec 9>&-

job=$(mktemp -d "$cache/job.XXXXXX")
pid=
trap '[ -z "$pid" ] || kill "$pid" 2>/dev/null || :; rm -rf "$job"' EXIT
next_steps "$@" >"$job/next"
# more of a CPU makes Python slower: what AVX has is slow to emulate
clock=()
[ "${VM_CLOCK-}" != instructions ] || clock=(-icount 'shift=1,sleep=off')
timeout "${VM_TIMEOUT:-600}" qemu-system-x86_64 -M q35 -accel tcg "${clock[@]}" -cpu Nehalem,+rdrand -smp 1 -m "${VM_MEMORY:-6144}" \
    -nodefaults -display none -monitor none -no-reboot -serial stdio -serial "file:$job/status" -device isa-debug-exit \
    -kernel "$cache/vmlinux" -initrd "$cache/initrd" \
    -append "console=ttyS0 quiet panic=-1 mitigations=off job=$job" \
    -virtfs local,path=/,mount_tag=files,security_model=none,readonly=on,multidevs=remap </dev/null &
pid=$!
status=0
wait "$pid" || status=$?
pid=
[ ! -s "$job/status" ] || exit "$(cat "$job/status")"
[ "$status" = 124 ] || status=125
exit "$status"
