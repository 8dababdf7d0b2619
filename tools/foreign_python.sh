#!/usr/bin/env bash
# Gets Debian's Python for another CPU, once a machine, and prints the folder of its usr/bin/python3 as the last line.
#
#   tools/foreign_python.sh s390x|arm64|armhf|ppc64el|riscv64     Debian's name of the CPU
#
# Run it with QEMU_LD_PREFIX set to that folder. It stays in ${XDG_CACHE_HOME:-~/.cache}/shmem-providers, and is of this
# machine's release of Debian. For root; tools/qemu.sh has qemu run it. 20 seconds.
set -euo pipefail
cd "$(dirname "$0")/.."

cpu=${1:-}
cache=${XDG_CACHE_HOME:-$HOME/.cache}/shmem-providers
root=$cache/debian-$cpu
case $cpu in
s390x | riscv64) machine=$cpu ;;
arm64) machine=aarch64 ;;
armhf) machine=arm ;;
ppc64el) machine=ppc64le ;;
*)
    echo "usage: $0 s390x|arm64|armhf|ppc64el|riscv64" >&2
    exit 2
    ;;
esac

fail() {
    echo "$0: $1" >&2
    exit 1
}

download() {
    local work=$1 suite repository apt
    suite=$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)
    mkdir -p "$work"/{lists/partial,cache/archives/partial,root}
    : >"$work/status"
    # shellcheck disable=SC2016 # $(REPO_URI) is apt's to expand
    for repository in $(apt-get indextargets --format '$(REPO_URI)' "Codename: $suite" | sort -u); do
        echo "deb [arch=$cpu signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $repository $suite main"
    done >"$work/sources.list"
    apt=(
        apt-get -qq -y -o "APT::Architecture=$cpu" -o "APT::Architectures::=$cpu" -o APT::Sandbox::User=root
        -o APT::Install-Recommends=false -o Dir::Etc::SourceList="$work/sources.list" -o Dir::Etc::SourceParts=/dev/null
        -o Dir::State::Lists="$work/lists" -o Dir::State::status="$work/status" -o Dir::Cache="$work/cache"
    )
    "${apt[@]}" update && "${apt[@]}" --download-only install python3 libstdc++6 # for NumPy
}

get() {
    local log=$root.log package folder link
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    download "$work" >"$log" 2>&1 || fail "no repository of this machine has Debian for $cpu: see $log"
    for package in "$work"/cache/archives/*.deb; do dpkg-deb -x "$package" "$work/root"; done
    for folder in lib lib64; do # since Debian 13 packages have only those in /usr
        [ -e "$work/root/$folder" ] || [ ! -d "$work/root/usr/$folder" ] || ln -s "usr/$folder" "$work/root/$folder"
    done
    find "$work/root"/lib*/ -maxdepth 1 -lname '/lib*' | while read -r link; do
        ln -sfn "..$(readlink "$link")" "$link" # ppc64el's loader
    done
    rm "$log"
    mv "$work/root" "$root"
}

tools/qemu.sh "$machine"
[ -d "$root" ] || (get)
echo "$root"
