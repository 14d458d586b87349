# Sourced by scripts/test: programs that tests need, from Debian packages. Needs `say` of venv.sh.

need_program() {  # NAME PACKAGE: installs the package as root; else says what to do, and fails
    local program=$1 package=$2
    command -v "$program" >/dev/null && return
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        say "the tests need $program: apt-get install $package"
        return 1
    fi
    say "installing $package, for $program"
    apt-get update -q >&2 && apt-get install -yq --no-install-recommends "$package" >&2
}
