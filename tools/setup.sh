#!/usr/bin/env bash
# Makes .venv: finds a Python, chooses a build of torch that fits this machine, installs Daguerre in place.
set -euo pipefail
cd "$(dirname "$0")/.."

# A name on the PATH may be a launcher with nothing behind it: take the first that really runs and is new enough.
python=""
for name in ${PYTHON:-} python3.12 python3.11 python3 python; do
  if "$name" -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then python=$name; break; fi
done
[ -n "$python" ] || { echo "setup: Python 3.11 or newer with the venv module is needed (PYTHON=/path/to/python make setup)" >&2; exit 1; }

[ -x .venv/bin/python ] || "$python" -m venv .venv
pip=(.venv/bin/python -m pip --disable-pip-version-check --quiet)

# The default Linux wheels of torch bring gigabytes of CUDA libraries. Without an NVIDIA driver they are dead weight, so
# ask the configured package indexes (and TORCH_INDEX, if given) for a build that calls itself "+cpu" first.
install_torch() {
  local extra=() version
  if .venv/bin/python -c 'import torch' 2>/dev/null; then echo "setup: torch is already there"; return; fi
  [ -z "${TORCH_INDEX:-}" ] || extra=(--extra-index-url "$TORCH_INDEX")
  if [ "$(uname -s)" = Linux ] && ! [ -e /proc/driver/nvidia/version ] && ! command -v nvidia-smi >/dev/null; then
    for version in 2.16.0 2.15.1 2.15.0 2.14.1 2.14.0 2.13.1 2.13.0 2.12.1 2.12.0 2.11.0; do
      if "${pip[@]}" install "${extra[@]}" "torch==$version+cpu" 2>/dev/null; then
        echo "setup: no NVIDIA driver here: took torch $version, CPU build"; return
      fi
    done
    echo "setup: no NVIDIA driver here, but no CPU build of torch is to be had either (TORCH_INDEX may name an index that has one): taking the default build"
  fi
  "${pip[@]}" install "${extra[@]}" "torch>=2.11"
  echo "setup: took torch $(.venv/bin/python -c 'import importlib.metadata as m; print(m.version("torch"))')"
}

install_torch
"${pip[@]}" install --editable ".[${EXTRAS:-dev}]"
# Newer than pyproject.toml: make knows from this file that setup is done.
touch .venv/ready
echo "setup: done"
