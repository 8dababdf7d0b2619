#!/usr/bin/env bash
# Builds wheels for other machines on this one, into build/wheels, with zig for a compiler.
#
#   tools/wheel.sh            all of the table below
#   tools/wheel.sh TARGET...  these
#
# What is there already, and as new as the sources, stays. $PYTHON, .venv/bin/python if not given, has to have
# setuptools and ziglang. tools/check_wheel.py judges what came out.
set -euo pipefail
cd "$(dirname "$0")/.."

# The tags are those that PyPI takes and that cibuildwheel gives; riscv64 and armv7l have their own. For ppc64le zig
# takes the other long double, with which printf is one that glibc has since 2.32.
targets='
    x86_64        x86_64-linux-gnu.2.28        manylinux_2_28_x86_64
    cp314t        x86_64-linux-gnu.2.28        manylinux_2_28_x86_64
    aarch64       aarch64-linux-gnu.2.28       manylinux_2_28_aarch64
    ppc64le       powerpc64le-linux-gnu.2.28   manylinux_2_28_ppc64le  -mabi=ibmlongdouble
    s390x         s390x-linux-gnu.2.28         manylinux_2_28_s390x
    i686          x86-linux-gnu.2.28           manylinux_2_28_i686
    armv7l        arm-linux-gnueabihf.2.31     manylinux_2_31_armv7l
    riscv64       riscv64-linux-gnu.2.31       manylinux_2_31_riscv64
    x86_64-musl   x86_64-linux-musl            musllinux_1_2_x86_64
    aarch64-musl  aarch64-linux-musl           musllinux_1_2_aarch64
    ppc64le-musl  powerpc64le-linux-musl       musllinux_1_2_ppc64le
    s390x-musl    s390x-linux-musl             musllinux_1_2_s390x
    i686-musl     x86-linux-musl               musllinux_1_2_i686
    armv7l-musl   arm-linux-musleabihf         musllinux_1_2_armv7l
    riscv64-musl  riscv64-linux-musl           musllinux_1_2_riscv64
    win_amd64     x86_64-windows-gnu           win-amd64
    win_arm64     aarch64-windows-gnu          win-arm64
    win32         x86-windows-gnu              win32
'

python=$(realpath -s "${PYTHON:-.venv/bin/python}")
zig="$python -m ziglang"
if ! $zig version >/dev/null 2>&1; then
    echo "$0: $python has no ziglang: pip install '.[wheels]'" >&2
    exit 1
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

headers() { # headers PYTHON: copies Python's, and makes them fit every target
    local include
    include=$("$1" -c 'import sysconfig; print(sysconfig.get_path("include"))')
    cp -r "$include" "$work/include"
    # The last is the real one: Debian's first includes it.
    cp "$(echo '#include <pyconfig.h>' | gcc -E -M -I"$include" - | grep -o '/[^ ]*/pyconfig\.h' | tail -n 1)" \
        "$work/include"
    cat >>"$work/include/pyconfig.h" <<'END'
#undef SIZEOF_LONG
#define SIZEOF_LONG __SIZEOF_LONG__
#undef SIZEOF_SIZE_T
#define SIZEOF_SIZE_T __SIZEOF_SIZE_T__
#undef SIZEOF_VOID_P
#define SIZEOF_VOID_P __SIZEOF_POINTER__
#undef WORDS_BIGENDIAN
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
#define WORDS_BIGENDIAN 1
#endif
END
}

windows() { # windows TAG: Windows' headers of Python, and the library by which a linker finds python3.dll
    local machine python
    case $1 in
    win-amd64) machine=i386:x86-64 ;;
    win-arm64) machine=arm64 ;;
    win32) machine=i386 ;;
    esac
    tools/windows.sh fetch
    python=$(tools/windows.sh home 311)
    cp -r "$python/include" "$work/include"
    sed 's/=python311\.[A-Za-z0-9_]*//' "$python/python3.def" >"$work/python3.def"
    $zig dlltool -m "$machine" -d "$work/python3.def" -l "$work/python3.lib"
    export SETUPTOOLS_EXT_SUFFIX=.pyd LDFLAGS="-L$work"
}

build() { # build TARGET ZIG'S-NAME TAG FLAGS
    local builder=$python compiler="$zig cc -target $2 $4"
    if [ "$1" = cp314t ]; then
        "$(tools/python.sh 314t | tail -n 1)" -m venv "$work/cp314t"
        builder=$work/cp314t/bin/python
        "$builder" -m pip install -q 'setuptools>=77'
    fi
    rm -rf "$work/source" "$work/include"
    case $3 in
    win*) windows "$3" ;;
    *) headers "$builder" ;;
    esac
    mkdir "$work/source"
    tar cf - --exclude='*.so' --exclude='*.egg-info' csrc src [A-Z]* pyproject.toml setup.py | tar xf - -C "$work/source"
    CC="$compiler -I$work/include" LDSHARED="$compiler -shared" AR="$zig ar" \
        _PYTHON_HOST_PLATFORM=$3 \
        "$builder" - "$work/source" "$PWD/build/wheels" <<'END' >/dev/null # not pip, which does not know every platform's name
import os, sys
from setuptools.build_meta import build_wheel
os.chdir(sys.argv[1])
sys.argv[1:], wheels = ["-q"], sys.argv[2]
build_wheel(wheels)
END
}

is_new() { # is_new TARGET TAG: whether nothing has changed since it was built
    local abi=abi3 wheel
    [ "$1" != cp314t ] || abi=cp314t
    for wheel in build/wheels/*-"$abi-${2//-/_}.whl"; do
        [ -e "$wheel" ] && [ -z "$(find csrc src/*/*.py* setup.py pyproject.toml README.md -newer "$wheel" -print -quit)" ]
    done
}

while read -r target name tag flags; do
    case " ${*:-$target} " in
    *" $target "*)
        is_new "$target" "$tag" && continue
        echo "$target: $tag"
        (build "$target" "$name" "$tag" "$flags")
        ;;
    esac
done <<<"$(sed '/^$/d' <<<"$targets")"
