#!/bin/bash
# Put a MySQL server into FOLDER, for the tests that MariaDB cannot stand in for.
#
#     get_mysql.sh FOLDER        then run FOLDER/mysqld
#
# Debian stable packages MariaDB only; MySQL is in its unstable branch. That one is downloaded from
# the mirror that apt is set up with, and unpacked beside the C library it was built for, so that
# nothing of this machine changes and no root is needed. A complete FOLDER is left as it is. Where
# this cannot be done, the last line on standard error says why.
set -euo pipefail

fail() {
    echo "no MySQL server: $1" >&2
    exit 1
}

folder=$(realpath -m "${1:?usage: get_mysql.sh FOLDER}")
[ -x "$folder/mysqld" ] && exit

command -v apt-get >/dev/null || fail "only Debian's packages of it are known here, and there is no apt"
mkdir -p "$folder"
exec 9>"$folder/lock" && flock 9 # two test runs may want it at the same time
[ -x "$folder/mysqld" ] && exit

# Labels are known once "apt-get update" has run. Until then, the first source has to do.
# shellcheck disable=SC2016  # $(SITE) is for apt to fill in
sources=(apt-get indextargets --format '$(SITE)' 'Created-By: Packages')
mirror=$("${sources[@]}" 'Label: Debian' | sed -n 1p) || fail "apt does not work here"
[ "$mirror" ] || mirror=$("${sources[@]}" | sed -n 1p)
[ "$mirror" ] || fail "apt has no package sources"

# apt with a state of its own. No package counts as installed there, so that everything the server
# needs is downloaded, down to the C library.
apt=$folder/apt
rm -rf "$apt" "$folder/unpacked"
mkdir -p "$apt"/{state/lists,cache/archives}/partial "$folder/unpacked"
touch "$apt/status"
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
echo "deb [signed-by=$keyring] $mirror sid main" >"$apt/sources.list"
cat >"$apt/apt.conf" <<CONF
Dir::State "$apt/state";
Dir::State::status "$apt/status";
Dir::Cache "$apt/cache";
Dir::Etc::sourcelist "$apt/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
Acquire::Languages "none";
Acquire::Retries "2";
Acquire::http::Timeout "20";
APT::Install-Recommends "false";
APT::Sandbox::User "";
APT::Update::Error-Mode "any";
CONF
export APT_CONFIG=$apt/apt.conf
log=$folder/get.log
apt-get -q update >"$log" 2>&1 || fail "the package lists cannot be had, see $log"
apt-get -q -y --download-only install mysql-server-core >>"$log" 2>&1 ||
    fail "the packages cannot be had, see $log"
for package in "$apt"/cache/archives/*.deb; do
    case ${package##*/} in
    perl* | libperl*) ;; # for scripts around the server only
    *) dpkg-deb --extract "$package" "$folder/unpacked" >>"$log" 2>&1 || fail "$package is damaged" ;;
    esac
done
rm -rf "$apt"

libraries=$(dirname "$(find "$folder/unpacked/usr/lib" -name libc.so.6)")
loader=$(find "$libraries" -name 'ld-linux*')
# It runs on its own loader and libraries, as those of the machine may be too old for it.
cat >"$folder/mysqld.new" <<PROGRAM
#!/bin/sh
# --no-defaults must come first, so what is added here comes last.
exec "$loader" --library-path "$libraries" "$folder/unpacked/usr/sbin/mysqld" "\$@" \\
    --basedir="$folder/unpacked/usr"
PROGRAM
chmod +x "$folder/mysqld.new"
"$folder/mysqld.new" --no-defaults --version >>"$log" 2>&1 || fail "it does not run, see $log"
mv "$folder/mysqld.new" "$folder/mysqld" # last: it marks the folder as complete
