# Sourced by the other scripts: goes to the project's root and makes or reuses .venv with the extra named in $1.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bin=.venv/bin
[ -x $bin/python ] || "${PYTHON:-python3}" -m venv .venv
$bin/python -c 'import sys; sys.exit(sys.version_info < (3, 11) and "fastmomentum needs Python 3.11 or later; name one in PYTHON=...")'
# What is installed follows from pyproject.toml and from where the project lies: only when these change, pip runs.
stamp=.venv/installed-$1 wanted="$(pwd) $(cksum <pyproject.toml)"
if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
    echo "installing what [$1] needs into .venv: a minute, or some, the first time" >&2
    $bin/python -m pip install --quiet --disable-pip-version-check --editable ".[$1]"
    echo "$wanted" >"$stamp"
fi
trap 'kill $(jobs -p) 2>/dev/null || true; echo "$0: $SECONDS seconds in all" >&2' EXIT
