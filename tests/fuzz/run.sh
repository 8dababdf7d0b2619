#!/bin/sh
# Fuzzes what reads ids and variables, what attaches, and what a service reads, for a while: a third of it each.
#
#   run.sh [seconds] [parse|attach|wire]     60 s and all three if not given
#
# It needs clang with its libFuzzer. A failure shows the input, as base64, too.
set -eu

root=$(CDPATH='' cd -- "$(dirname -- "$0")/../.." && pwd)
seconds=${1:-60}
targets=${2:-parse attach wire}
[ $# -ge 2 ] || seconds=$((seconds / 3))

build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT
mkdir "$build/parse" "$build/attach" "$build/wire"

count=0
seed() { # a text for printf
    count=$((count + 1))
    # shellcheck disable=SC2059
    printf "$2" >"$build/$1/$count"
}
seed parse '/shmp_abcdefghijklm\n65536'
seed parse '2hwcf.3.1z141z3'
seed parse '1234.5.89abcdef\n18446744073709551615'
seed parse 'zik0zj.zik0zj.1z141z4'
seed parse '2147483647\n1'
seed parse '/..\n010'
for provider in 0 1 2 3; do # 0 to 3: a live segment's id; 4: none
    for base in 0 1 2 3; do seed attach "\\00$provider\\00$base\\000\\000\\000\\000\\000\\000\\000\\000\\000****"; done
    seed attach "\\00$provider\\004\\010\\001\\000\\000\\000\\000\\000\\000\\000/shmp_abcdefghijklm"
    seed attach "\\00$provider\\004\\000\\001\\000\\000\\000\\000\\000\\000\\0001.1.0000"
    seed attach "\\00$provider\\004\\010\\001\\000\\000\\000\\000\\000\\000\\0003"
done

new='\000\000\000\003\000\200\010' existing='\000\000\000\027\001\200\0101' zeros='\000\000\000\000\000\000\000\000\000\000'
existing="$existing$zeros\\000\\000\\000\\000\\000\\000\\000\\000\\000"
for request in "$new" "$existing" '\000\000\000\002\002\001' '\000\000\000\001\003' '\000\000\000\001\004' \
    '\000\000\000\002\005\020' '\000\000\000\001\006' '\000\000\000\013\000\377\377\377\377\377\377\377\377\377\001'; do
    seed wire "\\000$request"
    for mode in 1 2; do seed wire "\\00$mode\\000$request\\001$request\\000$request"; done
done
for mode in 1 2; do # made, shared, announced, inherited, released; and the first client ends
    seed wire "\\00$mode\\000$new\\001$existing\\000\\000\\000\\000\\001\\004\\002\\000\\000\\000\\002\\005\\002\\001\\000\\000\\000\\002\\002\\002\\303\\000\\000\\000\\001\\003"
done

for target in $targets; do
    clang -std=c11 -O2 -g -Wall -Wextra -Werror -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all \
        -I"$root/csrc/include" -I"$root/csrc" -DSHMP_STATIC \
        "$root/tests/fuzz/fuzz_$target.c" "$root"/csrc/core/*.c "$root"/csrc/backend/*.c "$root"/csrc/os/*.c "$root"/csrc/service/*.c \
        -o "$build/fuzz_$target" -pthread -lrt
    length=64
    [ "$target" != wire ] || length=512 # many requests
    echo "fuzz_$target for $seconds s"
    if ! "$build/fuzz_$target" -max_total_time="$seconds" -max_len=$length -timeout=10 -print_final_stats=1 \
        -artifact_prefix="$build/" "$build/$target" >"$build/log" 2>&1; then
        tail -n 60 "$build/log"
        exit 1
    fi
    sed -n 's/^stat::\(number_of_executed_units\|average_exec_per_sec\)/fuzz_'"$target"' \1/p' "$build/log"
done
