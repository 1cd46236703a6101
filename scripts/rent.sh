#!/usr/bin/env bash
# Trains on a rented machine: installs the package, checks the GPUs, trains in tmux, prints how to fetch the run.
#
#     scp rent.sh run.toml USER@HOST:    (and the store, if the run file names a folder)
#     ssh USER@HOST
#     ./rent.sh run.toml [OPTIONS OF fromscratch train]
#
# Environment: FROMSCRATCH_SOURCE  the package for pip (a wheel, a folder, git+https://...; default: fromscratch)
#              FROMSCRATCH_FOLDER  the folder for the package and the runs (default: ~/fromscratch)
#              PYTHON              Python 3.11 or later (default: python3)
#              MAX_HOURS           stop and save after so many hours, for example 10 or 0.5 (default: no limit)
#              AT_END              a command to run when training has ended, for example 'sudo shutdown -h now'
#              ALLOW_CPU=1         train although there is no GPU
#              WITHOUT_TMUX=1      train in the foreground
# The same command continues a stopped run. It does not install again.
set -euo pipefail

fail() {
  echo "error: $*" >&2
  exit 2
}

[ $# -ge 1 ] || fail "the run file is missing; usage: $0 RUNFILE [OPTIONS OF fromscratch train]"
[ -f "$1" ] || fail "$1: no such run file"
run_file=$(realpath "$1")
shift
source_of_package=${FROMSCRATCH_SOURCE:-fromscratch}
folder=${FROMSCRATCH_FOLDER:-$HOME/fromscratch}
python=${PYTHON:-python3}

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
  fail "$python is older than 3.11; set PYTHON to a newer one"
mkdir -p "$folder"

if [ ! -x "$folder/.venv/bin/fromscratch" ]; then
  echo "installing $source_of_package into $folder/.venv"
  "$python" -m venv "$folder/.venv" || fail "cannot create a virtual environment; on Debian and Ubuntu: apt install python3-venv"
  "$folder/.venv/bin/python" -m pip install --quiet --upgrade pip
  "$folder/.venv/bin/python" -m pip install --quiet "$source_of_package"
fi

"$folder/.venv/bin/python" - <<'PYTHON_CODE'
import torch

count = torch.cuda.device_count()
for index in range(count):
    properties = torch.cuda.get_device_properties(index)
    product = torch.ones(256, 256, device=f"cuda:{index}") @ torch.ones(256, 256, device=f"cuda:{index}")
    assert product.sum().item() == 256**3, f"GPU {index} computes a wrong product: rent another machine"
    print(f"GPU {index}: {properties.name}, {properties.total_memory / 2**30:.0f} GiB, computes correctly")
PYTHON_CODE
devices=$("$folder/.venv/bin/python" -c 'import torch; print(torch.cuda.device_count())')
if [ "$devices" = 0 ]; then
  [ -n "${ALLOW_CPU:-}" ] ||
    fail "torch finds no GPU (look at nvidia-smi: the driver may be older than torch's CUDA); ALLOW_CPU=1 trains on the CPU"
  devices=1
fi

train=("$folder/.venv/bin/fromscratch" train "$run_file" --runs-dir "$folder/runs" "$@")
case " $* " in
*" --processes"*) ;;
*) train+=(--processes "$devices") ;;
esac

if [ -n "${MAX_HOURS:-}" ]; then
  case $MAX_HOURS in
  *[!0-9.]* | . | *.*.*) fail "MAX_HOURS=$MAX_HOURS: must be a number of hours" ;;
  esac
  # SIGTERM finishes the step and saves. Without --foreground it is sent twice, and the second one ends the process.
  train=(timeout --foreground --signal=TERM "${MAX_HOURS}h" "${train[@]}")
fi

# The address and port by which this ssh connection came; behind a provider's gateway they may differ.
read -r _ _ address port <<<"${SSH_CONNECTION:-x x HOST 22}"
echo "the run is written to $folder/runs; fetch it on your own machine with (address and port as you gave them to ssh):"
echo "    rsync -avz --partial -e 'ssh -p $port' $(id -un)@$address:$folder/runs/ runs/"
at_end=${AT_END:-true}
if [ -n "${WITHOUT_TMUX:-}" ] || ! command -v tmux >/dev/null; then
  [ -n "${WITHOUT_TMUX:-}" ] || echo "tmux is not installed: training in the foreground; a lost connection stops it, and the same command continues from the last checkpoint"
  code=0
  "${train[@]}" || code=$?
  bash -c "$at_end"
  exit "$code"
fi
# tee -i ignores Ctrl-C, so that the log shows how training saves and stops
tmux new-session -d -s fromscratch "$(printf '%q ' "${train[@]}") 2>&1 | tee -i -a $(printf '%q' "$folder/train.log"); $at_end; exec bash" ||
  fail "a tmux session 'fromscratch' exists already; attach with: tmux attach -t fromscratch"
echo "training in tmux: attach with  tmux attach -t fromscratch  and detach with Ctrl-b d; the log is $folder/train.log"
