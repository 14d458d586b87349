# Sourced by scripts/test, after use_venv: `need PACKAGE TEST…` installs a Debian package that the
# tests use, if the command TEST fails.

find_browser() { .venv/bin/python -m tests.helpers.browser; }

need() {
    local package=$1
    shift
    "$@" >/dev/null && return
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        say "installing $package, for the tests"
        apt-get update -q >&2 && apt-get install -yq --no-install-recommends "$package" >&2 &&
            "$@" >/dev/null && return
    fi
    say "the tests need $package: apt-get install $package"
    return 1
}
