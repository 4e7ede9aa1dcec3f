#!/bin/bash
# Put a Python that this machine does not have into FOLDER, for the tests: Debian's unstable branch
# has 3.14 and 3.15.
#
#     get_python.sh VERSION FOLDER        then run FOLDER/bin/pythonVERSION -m venv ...
#
# A complete FOLDER is left as it is. Needs patchelf: programs look for their interpreter by
# sys.executable, so that a wrapper which calls the loader will not do.
set -euo pipefail
source "$(dirname "$0")/debian_sid.sh"

version=${1:?usage: get_python.sh VERSION FOLDER}
get "${2:?usage: get_python.sh VERSION FOLDER}" "bin/python$version" "Python $version" \
    "python$version" "python$version-venv" ca-certificates media-types tzdata

command -v patchelf >/dev/null || fail "there is no patchelf"
python=$folder/unpacked/usr/bin/python$version
# DT_RPATH, so that extension modules, too, find the libraries beside this Python first.
patchelf --set-interpreter "$loader" --force-rpath --set-rpath "$libraries" "$python"
# Debian's ensurepip installs from a folder of the machine.
sed -i "s#^_pkg_dir = .*#_pkg_dir = '$folder/unpacked/usr/share/python-wheels'#" \
    "$folder/unpacked/usr/lib/python$version/ensurepip/__init__.py"
"$python" -c 'import ctypes, sqlite3, ssl, zlib' >>"$log" 2>&1 || fail "it does not run, see $log"
ln -s "$python" "$folder/bin/python$version"
