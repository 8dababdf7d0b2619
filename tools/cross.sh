#!/usr/bin/env bash
# Compiles and links the C core for systems that are not at hand, with zig, which brings their headers and libraries:
# without a warning, as a shared library that exports what csrc/exports.txt lists and needs the system only, and as
# a program that uses it. Nothing of it is run, but for the stand-in for Android.
#
#   tools/cross.sh [TARGET...]      all targets if none is given: 5 to 20 s, and 2 minutes of two processors the first time
#
# $PYTHON is a Python that has PyPI's ziglang, .venv/bin/python if not given. zig keeps what it built, libraries of
# the systems as well, in ${XDG_CACHE_HOME:-~/.cache}/zig.
set -euo pipefail

root=$(realpath "$(dirname "$0")/..")
python=${PYTHON:-$root/.venv/bin/python}
warnings=(-Wall -Wextra -Wpedantic -Wconversion -Wshadow -Wstrict-prototypes -Wvla -Werror)
targets=(
    x86_64-macos aarch64-macos
    x86_64-freebsd aarch64-freebsd x86_64-netbsd x86_64-openbsd aarch64-openbsd
    x86_64-windows-gnu x86-windows-gnu aarch64-windows-gnu
    x86-linux-musl # an i486, which has no atomics of 64 bits: the core does without
    # No Android: zig has not its libc. What the core leaves out there is left out here, and this runs.
    x86_64-linux-musl
)

fail() {
    echo "$0: $1" >&2
    exit 1
}

type llvm-nm llvm-readobj >/dev/null 2>&1 || fail 'apt-get install llvm'
"$python" -m ziglang version >/dev/null || fail "$python -m pip install ziglang"

# exports FILE: the functions that other programs can see
exports() {
    case $1 in
    *.dll) llvm-readobj --coff-exports "$1" | sed -n 's/^ *Name: \(.\)/\1/p' ;;
    *.dylib) # zig's linker adds two
        llvm-nm --extern-only --defined-only --just-symbol-name "$1" |
            sed 's/^_//' | grep -vxe __dso_handle -e _mh_dylib_header ;;
    *) llvm-nm --dynamic --extern-only --defined-only --just-symbol-name "$1" ;;
    esac | sort
}

# needed FILE: the libraries that it asks for
needed() {
    case $1 in
    *.dll | *.exe) llvm-readobj --coff-imports "$1" | sed -n '/^Import {/{n;s/^ *Name: //p}' ;;
    *) llvm-readobj --needed-libs "$1" | sed -n '/^NeededLibraries \[/,/^]/{s/^  //p}' ;;
    esac | sort | xargs
}

build() { # TARGET
    local target=$1 library=libshmem_providers.so program=program system='^libc\.so(\.[0-9.]+)?$' link=() options=()
    case $target in
    *-macos)
        library=libshmem_providers.dylib system="^(/usr/lib/libSystem\.B\.dylib|@rpath/$library)\$" # the latter is its own name
        link=("-Wl,-install_name,@rpath/$library")
        ;;
    *-netbsd) system='^lib(c|rt|pthread|m)\.so\.[0-9]+$' link=(-lrt -lpthread) ;;
    *bsd) system='^lib(c|thr|pthread)\.so(\.[0-9.]+)?$' link=(-lpthread) ;;
    *-windows-gnu)
        library=shmem_providers.dll program=program.exe
        system='^(ADVAPI32|KERNEL32|api-ms-win-crt-[a-z0-9-]+)\.dll$'
        link=('-Wl,--out-implib=shmem_providers.lib')
        ;;
    x86-linux-musl) options=(-mcpu=i486) ;;
    *-musl) options=(-D__ANDROID__) ;;
    esac
    mkdir -p "$work/$target"
    cd "$work/$target"
    local compile=("$python" -m ziglang cc -target "$target" -std=c11 -O2 "${warnings[@]}" "${options[@]}"
        "-I$root/csrc/include")
    "${compile[@]}" "-I$root/csrc" -fvisibility=hidden -DSHMP_BUILD -shared "$root"/csrc/{core,backend,os,service}/*.c \
        "${link[@]}" -o "$library"
    "${compile[@]}" "$root/tests/consumers/program.c" -L. -lshmem_providers -Wl,-rpath,. -o "$program"

    exports "$library" | diff "$root/csrc/exports.txt" - || fail "$target: $library exports other functions"
    local name
    for name in $(needed "$library"); do
        [[ $name =~ $system ]] || fail "$target: $library needs $name"
    done
    [[ " $(needed "$program") " == *[/\ ]"$library "* ]] || fail "$target: $program does not need $library"
    if [ "$target" = x86-linux-musl ]; then # zig adds what stands in for libatomic: the objects tell
        "${compile[@]}" "-I$root/csrc" -DSHMP_BUILD -c "$root"/csrc/{core,backend,os,service}/*.c
        ! llvm-nm --undefined-only ./*.o | grep __atomic_ || fail "$target: the core wants libatomic"
    fi
    echo "$target: $library needs $(needed "$library")"
}

run_stand_in() { # as on Android: memfd, and neither posix nor sysv
    cd "$work/x86_64-linux-musl"
    [ "$(./program)" = 'shared shared' ] || fail 'the stand-in for Android does not work'
    ! SHMEM_PROVIDER=posix ./program 2>refusal || fail 'the stand-in for Android has shm_open'
    grep -q 'posix is a mechanism of other platforms' refusal || fail "$(cat refusal)"
}

if [ $# -eq 0 ]; then
    printf '%s\n' "${targets[@]}" | xargs -n 1 -P "$(nproc)" "$0"
    exit
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for target; do
    (build "$target")
    [ "$target" != x86_64-linux-musl ] || (run_stand_in)
done
