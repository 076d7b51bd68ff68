#!/usr/bin/env bash
# Training on the GPUs of one node. A job that is requeued goes on from its checkpoint. Checked, not run.
#   sbatch deployments/slurm/train.sh /shared/workspace ct
#SBATCH --job-name=voxbook-train
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=8
#SBATCH --mem=32G
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --output=voxbook-train-%j.log
set -euo pipefail

workspace=${1:?the workspace: sbatch train.sh WORKSPACE GROUP}
group=${2:?the group: sbatch train.sh WORKSPACE GROUP}
export DO_NOT_TRACK=1 PYTHONSAFEPATH=1
# shellcheck source=/dev/null
source "${VOXBOOK_VENV:-/shared/venv}/bin/activate"

gpus=${SLURM_GPUS_ON_NODE:-1}
arguments=(train -w "$workspace" --group "$group" --set "train.max_seconds=${TRAIN_SECONDS:-10800}")
if ((gpus > 1)); then
  torchrun --standalone --nproc-per-node "$gpus" -m flows.cli "${arguments[@]}"
else
  voxbook "${arguments[@]}"
fi
