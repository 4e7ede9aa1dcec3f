#!/bin/bash
# Put MySQL Router into FOLDER, for the tests that run through it.
#
#     get_router.sh FOLDER        then run FOLDER/mysqlrouter, whose plugins are in
#                                 FOLDER/unpacked/usr/lib/mysqlrouter/plugin
#
# A complete FOLDER is left as it is.
set -euo pipefail
source "$(dirname "$0")/debian_sid.sh"

get "${1:?usage: get_router.sh FOLDER}" mysqlrouter "MySQL Router" mysql-router

cat >"$folder/mysqlrouter.new" <<PROGRAM
#!/bin/sh
exec "$loader" --library-path "$folder/unpacked/usr/lib/mysql-router:$libraries" \\
    "$folder/unpacked/usr/bin/mysqlrouter" "\$@"
PROGRAM
chmod +x "$folder/mysqlrouter.new"
"$folder/mysqlrouter.new" --version >>"$log" 2>&1 || fail "it does not run, see $log"
mv "$folder/mysqlrouter.new" "$folder/mysqlrouter"
