# Sourced by scripts/test, after use_venv: `need_browser` makes sure of a browser for the page's tests.

find_browser() { .venv/bin/python tests/e2e/browser.py; }

need_browser() {
    find_browser >/dev/null && return
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        say "installing chromium, for the tests of the page"
        apt-get update -q >&2 && apt-get install -yq --no-install-recommends chromium >&2 &&
            find_browser >/dev/null && return
    fi
    say "the tests of the page need a browser: apt-get install chromium, or set CHROMIUM to the path of one"
    return 1
}
