#!/bin/bash
# Install packages of Debian's that are missing, as far as that can be done without a password:
#
#     tests/support/install_packages.sh NAME...
#
# Says which cannot be had, and does not fail: who needs them finds out.
set -euo pipefail

missing=()
for package in "$@"; do
    dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null |
        grep -qx installed || missing+=("$package")
done
[ ${#missing[@]} -gt 0 ] || exit 0

sudo=()
[ "$(id -u)" = 0 ] || sudo=(sudo -n)
{ command -v apt-get && "${sudo[@]}" true; } >/dev/null 2>&1 || exit 0

echo "tests: installing with apt: ${missing[*]} (programs only, no service)"
"${sudo[@]}" apt-get -qq update || true
for package in "${missing[@]}"; do
    "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get -qq install --no-install-recommends "$package" >/dev/null ||
        echo "tests: apt cannot install $package" >&2
done
