#!/bin/sh
# Runs the tests of one marker, one after the other. A marker that no test carries yet is said aloud, and is no failure.
# Called by `make test-<marker>`.
set -eu
cd "$(dirname "$0")/.."

marker=$1
status=0
.venv/bin/python -m pytest -m "$marker" || status=$?
if [ "$status" -eq 5 ]; then
    echo "No test carries the marker '$marker'."
    exit 0
fi
exit "$status"
