#!/bin/sh
# Makes the lock of an environment with torch: torch_lock.sh NAME [more files of requirements]. `make lock` calls it. Linux on
# x86_64 and Python 3.11 only. The processor's build of torch is looked for where pip is told to look, else on PyTorch's own
# index. `overrides.txt` names what is left out; packages in `no-deps.in` are taken without what they ask for.
set -eu
cd "$(dirname "$0")/../.."

folder=tests/environments/$1
shift
links=${PIP_FIND_LINKS:-$(.venv-lock/bin/python -m pip config get global.find-links 2>/dev/null || true)}
if ls "$links"/torch-2.13.0+cpu-cp311-*x86_64.whl >/dev/null 2>&1; then
    set -- --find-links "$links" "$@"
else
    set -- --extra-index-url https://download.pytorch.org/whl/cpu --index-strategy unsafe-best-match "$@"
fi

compile() {
    out=$1
    shift
    .venv-lock/bin/uv pip compile --quiet --generate-hashes --only-binary :all: --no-config --no-emit-index-url \
        --no-emit-find-links --python-version 3.11 --python-platform x86_64-manylinux_2_35 \
        --custom-compile-command "make lock" --output-file "$out" "$@"
}

lock=$folder/requirements.lock
compile "$lock" --override "$folder/overrides.txt" "$@" "$folder/requirements.in"
if [ -f "$folder/no-deps.in" ]; then
    # An output that is there keeps its pins; the two parts are kept apart until both are made.
    alone=$(mktemp)
    trap 'rm -f "$alone"' EXIT
    compile "$alone" --no-deps "$folder/no-deps.in"
    tail -n +3 "$alone" >>"$lock"
fi
echo "$lock: $(grep -c '^[A-Za-z0-9]' "$lock") packages"
