#!/usr/bin/env bash
# A merge on whole nodes of a Slurm cluster: sbatch cluster/slurm.sh recipe.yaml /shared/merged
# Submitted again, or requeued after a preemption, it goes on with what is written.
#SBATCH --job-name=raymerge
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --exclusive
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

recipe=${1:?usage: sbatch slurm.sh RECIPE OUT [FLAGS OF raymerge merge]}
out=${2:?usage: sbatch slurm.sh RECIPE OUT [FLAGS OF raymerge merge]}
shift 2

# An environment on a file system that all nodes mount, with raymerge in it.
# shellcheck disable=SC1091
source "${RAYMERGE_VENV:-$HOME/raymerge/.venv}/bin/activate"

# Made once, in the home that the nodes share; whoever can read it can use the cluster.
export RAY_AUTH_MODE=token
(umask 077 && ray get-auth-token --generate > /dev/null)

export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=300
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
port=$((20000 + SLURM_JOB_ID % 10000))

srun --kill-on-bad-exit=1 ray symmetric-run --address "$head:$port" --min-nodes "$SLURM_JOB_NUM_NODES" \
  --num-cpus "$SLURM_CPUS_PER_TASK" --num-gpus "$SLURM_GPUS_ON_NODE" --object-store-memory 200000000 \
  -- raymerge merge "$recipe" "$out" --engine ray --address auto --device cuda "$@"
