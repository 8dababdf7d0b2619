#!/bin/sh
# Builds the core with each test program, and runs them.
#
#   run.sh [gcc|clang] [plain|asan|tsan|valgrind]     the compiler is $CC, or cc, when none is given
#   run.sh build DIRECTORY                            runs none, but leaves the programs there, some of 32 bits as well
#   run.sh windows                                    zig's, of $PYTHON (.venv/bin/python); runs under Wine
#
# $CFLAGS is added at the end. Nothing is left behind: the build is in a temporary directory.
# shellcheck disable=SC2086 # variables hold several words, or none: sh has no arrays
set -eu

root=$(CDPATH='' cd -- "$(dirname -- "$0")/../.." && pwd)
compiler=${1:-${CC:-cc}}
kind=${2:-plain} kept=
if [ "$compiler" = build ]; then
    kept=$2 compiler=${CC:-cc} kind=plain
fi

runner='' sanitize='' programs='test_conformance test_handles test_names test_faults test_races test_service'
# Older glibc has shm_open in a library of its own.
case $(uname -s) in
Linux) libraries='-pthread -lrt' programs="$programs test_machines test_served test_android" ;;
*) libraries=-pthread ;;
esac
if [ "$compiler" = windows ]; then
    compiler="${PYTHON:-$root/.venv/bin/python} -m ziglang cc -target x86_64-windows-gnu"
    runner="$root/tools/windows.sh program" programs=test_win32 libraries=
fi
case $kind in
plain) ;;
asan) sanitize='-fsanitize=address,undefined -fno-sanitize-recover=all' ;;
tsan) sanitize=-fsanitize=thread programs='test_conformance test_handles test_names test_service test_served' ;;
emulated) # the others want the kernel's own calls, or take minutes
    programs=test_conformance
    export SHMP_PLAIN=1
    ;;
valgrind) # leaks are asan's, which children do not disturb; it lacks the fcntl that names are marked by
    runner='valgrind -q --error-exitcode=9 --leak-check=no' programs='test_conformance test_handles'
    export SHMP_VALGRIND=1 SHMP_PLAIN=1
    ;;
*)
    echo "usage: $0 [gcc|clang] [plain|asan|tsan|valgrind] | build DIRECTORY | windows" >&2
    exit 2
    ;;
esac

build=${kept:-$(mktemp -d)}
[ -n "$kept" ] || trap 'rm -rf "$build"' EXIT

header=$root/csrc/include/shmem_providers.h
common='-Wall -Wextra -Wpedantic -Wconversion -Wshadow -Werror'
printf '#include "%s"\nint main(void) { return 0; }\n' "$header" >"$build/header.c"
$compiler -x c -std=c99 $common -Wstrict-prototypes -c "$build/header.c" -o "$build/header.o"
if $compiler -x c++ -c /dev/null -o "$build/header.o" 2>/dev/null; then
    $compiler -x c++ -std=c++11 $common -c "$build/header.c" -o "$build/header.o"
else
    echo "skip header as C++11: $compiler compiles no C++ (install g++)"
fi

# TSan does not know shmat and shmdt: what the test plays with there looks like a race when an address comes again.
echo race:play_round >"$build/suppressions"

# $1: the test program; further arguments: for the compiler.
compile() {
    source=$root/tests/c/$1.c
    shift
    $compiler -std=c11 -O2 -g $common -Wstrict-prototypes -I"$root/csrc/include" -I"$root/csrc" -DSHMP_STATIC \
        "$source" "$root"/csrc/core/*.c "$root"/csrc/backend/*.c "$root"/csrc/os/*.c "$root"/csrc/service/*.c \
        "$@" ${CFLAGS-} $libraries
}

for program in $programs; do
    case $program in
    test_win32 | test_served | test_service) faults=-DSHMP_FAULTS ;;
    test_faults | test_races) faults='-DSHMP_FAULTS -Wl,--wrap=time' ;;
    test_names) faults=-Wl,--wrap=time ;; # its clock is its own
    test_machines) faults=-Wl,-z,now ;;
    test_android)
        $compiler -std=c11 $common -shared -fPIC "$root/tests/c/libandroid.c" -o "$build/libandroid.so"
        faults="-DSHMP_ASHMEM_LIBRARY=\"$build/libandroid.so\" -ldl" # where older glibc has dlopen
        ;;
    *) faults= ;;
    esac
    compile $program $sanitize $faults -o "$build/$program.exe"
    if [ -n "$kept" ]; then
        case $program in
        test_conformance)
            compile $program -m32 -o "$build/${program}_32.exe"
            compile $program -DSHMP_STD_IS_SERVED=1 -o "$build/${program}_std.exe" # as on Android
            ;;
        test_handles | test_machines) compile $program -m32 $faults -o "$build/${program}_32.exe" ;;
        esac
        continue
    fi

    if [ $program = test_service ]; then # as on systems without abstract sockets
        compile $program $sanitize $faults -DSHMP_HAVE_ABSTRACT=0 -o "$build/paths.exe"
        "$build/paths.exe"
    fi

    # A process of fewer bits than the other side has. Not all machines can compile or run it.
    if [ $program = test_machines ] && $compiler -m32 -x c "$build/header.c" -o "$build/header.exe" 2>/dev/null &&
        "$build/header.exe"; then
        compile $program -m32 -o "$build/test_machines_32.exe"
        export SHMP_32_BITS="$build/test_machines_32.exe"
    fi

    # Sizes that no machine has are asked for on purpose: malloc shall say so, not abort.
    ASAN_OPTIONS=allocator_may_return_null=1${ASAN_OPTIONS+:$ASAN_OPTIONS} \
        UBSAN_OPTIONS=print_stacktrace=1 \
        TSAN_OPTIONS="allocator_may_return_null=1 suppressions=$build/suppressions" \
        $runner "$build/$program.exe"
done
