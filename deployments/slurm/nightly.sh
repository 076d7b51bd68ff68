#!/usr/bin/env bash
# The night's stages as one job of SLURM: the driver, which starts its workers as jobs of their own ([cluster.slurm] in
# voxbook.toml). Checked by shellcheck and against the command line; not run, as no queue was at hand.
#   sbatch deployments/slurm/nightly.sh /shared/workspace
#SBATCH --job-name=voxbook
#SBATCH --cpus-per-task=2
#SBATCH --mem=8G
#SBATCH --time=12:00:00
#SBATCH --output=voxbook-%j.log
set -uo pipefail

workspace=${1:?the workspace: sbatch nightly.sh WORKSPACE}
export DO_NOT_TRACK=1 PYTHONSAFEPATH=1
# shellcheck source=/dev/null
source "${VOXBOOK_VENV:-/shared/venv}/bin/activate" || exit 1

# 4 (items quarantined) and 5 (below the gate) are results, not reasons to stop; anything else is.
worst=0
for stage in ingest encode verify report; do
  voxbook "$stage" -w "$workspace"
  code=$?
  case $code in
    0) ;;
    4 | 5) ((code > worst)) && worst=$code ;;
    *) echo "voxbook $stage ended with exit code $code: see docs/cli.md" >&2; exit "$code" ;;
  esac
done
exit "$worst"
