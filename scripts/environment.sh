#!/usr/bin/env bash
# Makes a virtual environment in $1 (once) with this checkout installed in it; the remaining arguments go to pip.
# Sourced by the other scripts.  PYTHON names the interpreter (3.11 or newer).
set -euo pipefail

make_environment() {
  local venv=$1; shift
  local python=${PYTHON:-}
  if [ -z "$python" ]; then
    for candidate in python3.12 python3.11 python3 python3.13; do
      if command -v "$candidate" >/dev/null && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        python=$candidate; break
      fi
    done
  fi
  if [ -z "$python" ]; then
    echo "Tessera needs Python 3.11 or newer (apt-get install python3 python3-venv)" >&2; exit 1
  fi
  if [ ! -x "$venv/bin/python" ]; then
    if ! "$python" -m venv "$venv" 2>/dev/null; then
      rm -rf "$venv"
      if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        apt-get update -qq && apt-get install -y -qq python3-venv
        "$python" -m venv "$venv"
      else
        echo "python3-venv is missing (apt-get install python3-venv)" >&2; exit 1
      fi
    fi
  fi
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$@"
}
