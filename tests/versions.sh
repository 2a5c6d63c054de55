#!/usr/bin/env bash
# Run the tests on the oldest PyTorch that is supported and on the newest there is.
# usage: tests/versions.sh [PYTEST ARGUMENTS]
set -euo pipefail
cd "$(dirname "$0")/.."
status=0
for versions in "torch==2.11.* torchvision==0.26.*" "torch torchvision"; do
  environment=$(mktemp -d)
  python3 -m venv "$environment"
  # shellcheck disable=SC2086 # two requirements in one word
  "$environment/bin/pip" install -q $versions '.[test]'
  "$environment/bin/python" -c 'import timm, torch, torchvision as tv; print("torch", torch.__version__, "torchvision", tv.__version__, "timm", timm.__version__)'
  # What an older PyTorch warns of in itself is no failure.
  "$environment/bin/pytest" -W default "$@" || status=$?
  rm -rf "$environment"
done
exit "$status"
