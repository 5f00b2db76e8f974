#!/bin/sh
# Asks the resolver whether every extra can be installed on Linux with each Python that it claims to support, next to the
# core's own ranges. Nothing is installed: the vllm extra alone would be gigabytes. Called by `make resolve`.
set -eu
cd "$(dirname "$0")/.."

for extra in vllm s3 hub; do
    for python in 3.11 3.12 3.13; do
        found=$(.venv-lock/bin/uv pip compile --quiet --no-config --no-annotate --no-header --only-binary :all: \
            --python-version "$python" --python-platform x86_64-manylinux_2_35 --extra "$extra" pyproject.toml)
        wanted=$(printf '%s\n' "$found" | grep -E '^(vllm|torch|fastapi|obstore|huggingface-hub)==' | tr '\n' ' ')
        case "$extra:$wanted" in
        vllm:*vllm==* | s3:*obstore==* | hub:*huggingface-hub==*) echo "retort[$extra] on Python $python: $wanted" ;;
        *) echo "retort[$extra] on Python $python resolved without the extra's own package: $wanted" >&2 && exit 1 ;;
        esac
    done
done
