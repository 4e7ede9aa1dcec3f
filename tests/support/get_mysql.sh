#!/bin/bash
# Put a MySQL server into FOLDER, for the tests that MariaDB cannot stand in for: Debian stable
# packages MariaDB only.
#
#     get_mysql.sh FOLDER        then run FOLDER/mysqld
#
# A complete FOLDER is left as it is.
set -euo pipefail
source "$(dirname "$0")/debian_sid.sh"

get "${1:?usage: get_mysql.sh FOLDER}" mysqld "MySQL server" mysql-server-core

cat >"$folder/mysqld.new" <<PROGRAM
#!/bin/sh
# --no-defaults must come first, so what is added here comes last.
exec "$loader" --library-path "$libraries" "$folder/unpacked/usr/sbin/mysqld" "\$@" \\
    --basedir="$folder/unpacked/usr"
PROGRAM
chmod +x "$folder/mysqld.new"
"$folder/mysqld.new" --no-defaults --version >>"$log" 2>&1 || fail "it does not run, see $log"
mv "$folder/mysqld.new" "$folder/mysqld"
