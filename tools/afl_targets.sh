#!/usr/bin/env bash
# Makes targets for the hosts of examples/afl with the AFL++ of several Debian releases, and installs nothing:
#
#   tools/afl_targets.sh FOLDER [RELEASE...]      FOLDER/RELEASE/{plain,loop,shared,dictionary,large}
#
# bullseye has AFL++ 2.68c, bookworm 4.04c, trixie 4.21c and sid 5.02c (November 2026). What clang compiles here is
# linked with the runtime of their packages, a megabyte each, which are kept in ${XDG_CACHE_HOME:-~/.cache}/shmem-providers.
# Of this machine's own release, afl-cc itself makes {plain,loop,shared}-afl-cc as well.
set -euo pipefail
repository=$(cd "$(dirname "$0")/.." && pwd)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/shmem-providers/afl
keyring=/usr/share/keyrings/debian-archive-keyring.gpg

fail() {
    echo "afl_targets.sh: $1" >&2
    exit 1
}

fetch() { # the package of a release, into a folder
    local release=$1 package=afl++ folder=$2 mirror options
    [ "$release" != bullseye ] || package=afl++-clang
    mirror=$(apt-get indextargets 'Origin: Debian' | sed -n 's/^Repo-URI: \(.*\/debian\/\)$/\1/p' | sort -u | head -n 1)
    [ -n "$mirror" ] || fail "needs a mirror of Debian in apt's sources"
    work=$(mktemp -d "$cache/new.XXXXXX")
    mkdir -p "$work"/apt/{lists,cache/archives}/partial
    echo "deb [signed-by=$keyring] $mirror $release main" >"$work/apt/sources.list"
    options=(-qq -o Dir::Etc::sourcelist="$work/apt/sources.list" -o Dir::Etc::sourceparts=/dev/null
        -o Dir::State::lists="$work/apt/lists" -o Dir::State::status=/dev/null -o Dir::Cache="$work/apt/cache"
        -o Acquire::Languages=none -o APT::Sandbox::User="$(id -un)")
    if ! apt-get "${options[@]}" update || ! (cd "$work" && apt-get "${options[@]}" download "$package"); then
        fail "needs $package of Debian $release, which $mirror does not give"
    fi
    dpkg-deb -x "$work"/*.deb "$work/root"
    basename "$work"/*.deb .deb >"$work/root/version"
    mv -T "$work/root" "$folder" # whole, or not at all
    rm -r "$work"
}

[ $# -gt 0 ] || fail "usage: $0 FOLDER [RELEASE...]"
folder=$1
shift
[ $# -gt 0 ] || set -- bullseye bookworm trixie sid
command -v clang >/dev/null || fail "needs clang: apt install clang"
command -v apt-get >/dev/null && [ -f $keyring ] || fail "needs Debian's apt, and debian-archive-keyring"
mkdir -p "$cache" "$folder"
source=$repository/examples/afl/target.c
work=
trap 'rm -rf "$work"' EXIT

# The link is not told of the coverage, or clang would add a library of its own.
compile=(clang -O1 -fsanitize-coverage=trace-pc-guard -include "$repository/tools/afl_macros.h" -c "$source")
"${compile[@]}" -o "$folder/plain.o"
"${compile[@]}" -DLOOP -o "$folder/loop.o"
"${compile[@]}" -DSHARED -o "$folder/shared.o"

for release; do
    root=$cache/$release
    [ -d "$root" ] || fetch "$release" "$root"
    mkdir -p "$folder/$release"
    runtime=$root/usr/lib/afl/afl-compiler-rt.o
    [ -f "$runtime" ] || runtime=$root/usr/lib/afl/afl-llvm-rt.o
    for target in plain loop shared dictionary large; do
        object=$target.o macro=
        case $target in
            dictionary) object=shared.o macro=-DDICTIONARY ;;
            large) object=shared.o macro=-DLARGE ;;
        esac
        clang $macro "$folder/$object" "$repository/tools/afl_extras.c" "$runtime" -o "$folder/$release/$target"
    done
    if grep -q "^VERSION_CODENAME=$release$" /etc/os-release; then
        for target in plain loop shared; do
            AFL_PATH=$root/usr/lib/afl AFL_QUIET=1 "$root/usr/bin/afl-cc" "-D${target^^}" "$source" \
                -o "$folder/$release/$target-afl-cc"
        done
    fi
    echo "$release: $(cat "$root/version")"
done
