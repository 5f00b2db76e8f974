#!/bin/sh
# Installs Debian packages that a suite needs, if they are missing: tests/environments/debian.sh nginx chromium
# Says what to do when it cannot. Quick when all are there: no network then.
set -eu

missing=""
for name in "$@"; do
    state=$(dpkg-query --show --showformat='${db:Status-Status}' "$name" 2>/dev/null) || state=absent
    [ "$state" = installed ] || missing="$missing $name"
done
[ -n "$missing" ] || exit 0

if ! command -v apt-get >/dev/null 2>&1; then
    echo "These tests need$missing, and this system has no apt-get: install the programs in your system's way." >&2
    exit 1
fi
if [ "$(id -u)" -ne 0 ]; then
    echo "These tests need Debian packages. As root: apt-get update && apt-get install$missing" >&2
    exit 1
fi
export DEBIAN_FRONTEND=noninteractive
echo "Installing$missing …"
apt-get update -qq
# policy-rc.d: a test starts its own servers, the system's must not start by themselves.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
    trap 'rm -f "$policy"' EXIT
fi
# shellcheck disable=SC2086 # a list of names
apt-get install -qq --yes --no-install-recommends $missing </dev/null
