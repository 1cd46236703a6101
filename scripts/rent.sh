#!/usr/bin/env bash
# Trains on a rented machine: sets it up, checks the device, trains in tmux, says how to fetch the run.
#
#     scp rent.sh run.toml USER@HOST:    (and the store, where the run file names a folder)
#     ssh USER@HOST
#     ./rent.sh run.toml [OPTIONS OF fromscratch train]
#
# Environment: FROMSCRATCH_SOURCE  what pip installs (a wheel, a folder, git+https://...; default: fromscratch)
#              FROMSCRATCH_FOLDER  where everything goes (default: ~/fromscratch)
#              PYTHON              a Python 3.11 or later (default: python3)
#              WITHOUT_TMUX=1      train here, in the foreground
# Run it again to go on where training stopped: what is installed stays.
set -euo pipefail

fail() {
  echo "error: $*" >&2
  exit 2
}

[ $# -ge 1 ] || fail "which run file? usage: $0 RUNFILE [OPTIONS OF fromscratch train]"
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
  "$python" -m venv "$folder/.venv" || fail "cannot make a virtual environment; on Debian and Ubuntu: apt install python3-venv"
  "$folder/.venv/bin/python" -m pip install --quiet --upgrade pip
  "$folder/.venv/bin/python" -m pip install --quiet "$source_of_package"
fi

"$folder/.venv/bin/python" - <<'PYTHON_CODE'
import torch

count = torch.cuda.device_count()
for index in range(count):
    facts = torch.cuda.get_device_properties(index)
    product = torch.ones(256, 256, device=f"cuda:{index}") @ torch.ones(256, 256, device=f"cuda:{index}")
    assert product.sum().item() == 256**3, f"GPU {index} computes wrong sums: rent another machine"
    print(f"GPU {index}: {facts.name}, {facts.total_memory / 2**30:.0f} GiB, it computes")
if not count:
    print("no GPU: torch sees none, and training will use the processor (is the driver older than torch's CUDA?)")
PYTHON_CODE
devices=$("$folder/.venv/bin/python" -c 'import torch; print(max(1, torch.cuda.device_count()))')

train=("$folder/.venv/bin/fromscratch" train "$run_file" --runs-dir "$folder/runs" "$@")
case " $* " in
*" --processes"*) ;;
*) train+=(--processes "$devices") ;;
esac

echo "the run will be in $folder/runs; to fetch it, on your own machine:"
echo "    rsync -avz --partial $(id -un)@$(hostname):$folder/runs/ runs/"
if [ -n "${WITHOUT_TMUX:-}" ] || ! command -v tmux >/dev/null; then
  [ -n "${WITHOUT_TMUX:-}" ] || echo "no tmux here: training in the foreground; a lost connection ends it, and the same command goes on from the last checkpoint"
  exec "${train[@]}"
fi
tmux new-session -d -s fromscratch "$(printf '%q ' "${train[@]}") 2>&1 | tee -a $(printf '%q' "$folder/train.log"); exec bash" ||
  fail "a tmux session 'fromscratch' is there already; look with: tmux attach -t fromscratch"
echo "training in tmux: attach with  tmux attach -t fromscratch  and leave with Ctrl-b d; the log is $folder/train.log"
