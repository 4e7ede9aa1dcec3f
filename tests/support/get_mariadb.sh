#!/bin/bash
# Put MariaDB 11.8 into FOLDER, for tests on a newer MariaDB than this machine's: Debian's unstable
# branch has it.
#
#     get_mariadb.sh FOLDER        then run FOLDER/sbin/mariadbd, which FOLDER/sbin/mariadb-install-db
#                                  makes a data directory for
#
# A complete FOLDER is left as it is.
set -euo pipefail
source "$(dirname "$0")/debian_sid.sh"

get "${1:?usage: get_mariadb.sh FOLDER}" sbin/mariadbd "MariaDB 11.8" mariadb-server-core

# What mariadb-install-db looks for below a --basedir. my_print_defaults, of another package, would
# tell what the option files of this machine say: nothing.
mkdir -p "$folder/bin"
ln -sfn unpacked/usr/share "$folder/share"
ln -sfn unpacked/usr/lib "$folder/lib"
ln -sf /bin/true "$folder/bin/my_print_defaults"
cat >"$folder/sbin/mariadb-install-db" <<PROGRAM
#!/bin/sh
exec "$folder/unpacked/usr/bin/mariadb-install-db" "\$@" --basedir="$folder"
PROGRAM
cat >"$folder/sbin/mariadbd.new" <<PROGRAM
#!/bin/sh
# --no-defaults must come first, so what is added here comes last.
exec "$loader" --library-path "$libraries" "$folder/unpacked/usr/sbin/mariadbd" "\$@" \\
    --basedir="$folder"
PROGRAM
chmod +x "$folder"/sbin/*
"$folder/sbin/mariadbd.new" --no-defaults --version >>"$log" 2>&1 || fail "it does not run, see $log"
mv "$folder/sbin/mariadbd.new" "$folder/sbin/mariadbd"
