# Debian's unstable branch has what stable lacks. This is for scripts that unpack some of it:
#
#     source debian_sid.sh
#     get FOLDER PROGRAM "a MySQL server" PACKAGE...
#
# ends the script if FOLDER/PROGRAM is there; else FOLDER/unpacked has the packages, and all that
# they need, down to the C library, so that nothing of this machine changes and no root is needed.
# Where this cannot be done, the last line on standard error says why. The caller makes PROGRAM last:
# it marks the folder as complete.

fail() {
    echo "no $what: $1" >&2
    exit 1
}

get() {
    folder=$(realpath -m "$1")
    local program=$folder/$2
    what=$3
    shift 3
    [ -x "$program" ] && exit

    command -v apt-get >/dev/null || fail "only Debian's packages of it are known here, and there is no apt"
    mkdir -p "$(dirname "$program")"
    exec 9>"$folder/lock" && flock 9 # two test runs may want it at the same time
    [ -x "$program" ] && exit

    # Labels are known once "apt-get update" has run. Until then, the first source has to do.
    # shellcheck disable=SC2016  # $(SITE) is for apt to fill in
    local sources=(apt-get indextargets --format '$(SITE)' 'Created-By: Packages') mirror
    mirror=$("${sources[@]}" 'Label: Debian' | sed -n 1p) || fail "apt does not work here"
    [ "$mirror" ] || mirror=$("${sources[@]}" | sed -n 1p)
    [ "$mirror" ] || fail "apt has no package sources"

    # apt with a state of its own. No package counts as installed there, so that everything is
    # downloaded.
    local apt=$folder/apt package
    rm -rf "$apt" "$folder/unpacked"
    mkdir -p "$apt"/{state/lists,cache/archives}/partial "$folder/unpacked"
    touch "$apt/status"
    local keyring=/usr/share/keyrings/debian-archive-keyring.gpg
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
    log=$folder/get.log
    APT_CONFIG=$apt/apt.conf apt-get -q update >"$log" 2>&1 ||
        fail "the package lists cannot be had, see $log"
    APT_CONFIG=$apt/apt.conf apt-get -q -y --download-only install "$@" >>"$log" 2>&1 ||
        fail "the packages cannot be had, see $log"
    for package in "$apt"/cache/archives/*.deb; do
        case ${package##*/} in
        perl* | libperl*) ;; # for scripts around a server only
        *) dpkg-deb --extract "$package" "$folder/unpacked" >>"$log" 2>&1 || fail "$package is damaged" ;;
        esac
    done
    rm -rf "$apt"

    # What was unpacked runs on its own loader and libraries, as those of the machine may be too old.
    # shellcheck disable=SC2034  # for the caller
    libraries=$(dirname "$(find "$folder/unpacked/usr/lib" -name libc.so.6)")
    loader=$(find "$libraries" -name 'ld-linux*')
}
