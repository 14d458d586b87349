# Sourced by the other scripts: `use_venv EXTRAS` installs tokenflume[EXTRAS] into .venv. It does
# nothing if that was done for this setup.cfg. Without extras, any installation is enough.

say() { printf '\033[1m==> %s\033[0m\n' "$*" >&2; }

find_python() {
    local candidate
    for candidate in "${PYTHON:-python3}" python3.14 python3.13 python3.12 python3.11; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    say "tokenflume needs Python 3.11 or newer; set PYTHON to one"
    return 1
}

make_venv() {
    local python=$1
    "$python" -m venv .venv && return
    rm -rf .venv  # it is incomplete
    # In Debian, the pip of venv is in a package of its own.
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        say "installing python3-venv"
        apt-get update -q >&2 && apt-get install -yq python3-venv >&2 && "$python" -m venv .venv
    else
        say "the venv module is incomplete: apt-get install python3-venv"
        return 1
    fi
}

is_ready() {
    local extras=$1 stamp
    for stamp in ".venv/ready${extras:+-$extras}"*; do  # without extras: any stamp
        if cmp -s setup.cfg "$stamp"; then
            return
        fi
    done
    return 1
}

use_venv() {
    local extras=$1 python
    if [ -x .venv/bin/python ] && is_ready "$extras"; then
        return
    fi
    if [ ! -x .venv/bin/python ]; then
        python=$(find_python)
        say "making a virtual environment in .venv with $("$python" --version)"
        make_venv "$python"
    fi
    say "installing tokenflume${extras:+[$extras]} and its dependencies"
    .venv/bin/python -m pip install --disable-pip-version-check --editable ".${extras:+[$extras]}" >&2
    cp setup.cfg ".venv/ready${extras:+-$extras}"
}
