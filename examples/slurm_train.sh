#!/bin/bash
#SBATCH --job-name=koe-train
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --mem=512G
#SBATCH --time=48:00:00
#SBATCH --signal=USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
# Training without Ray, on the GPUs of one node or of several: sbatch slurm_train.sh /shared/run
# One task per GPU: train.workers of the run must be nodes x tasks per node. 300 seconds before the time
# limit Slurm sends SIGUSR1 to all tasks: they write a checkpoint and end with 75, and the job is put into the queue
# again. So does Slurm itself with a job that it preempts. Either way it goes on from the newest checkpoint.
set -euo pipefail

run=${1:?name the run directory: sbatch slurm_train.sh /shared/run}
source "${KOE_VENV:-/shared/koe/.venv}/bin/activate"

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)
port=$((40000 + SLURM_JOB_ID % 20000))

export MASTER_ADDR="$head" MASTER_PORT="$port"

code=0
# shellcheck disable=SC2016 # each task puts in its own numbers
srun bash -c 'RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS exec python -m training "$@"' \
  koe --config "$run/config.json" --shards "$run/shards" --out "$run/train" || code=$?
if [ "$code" -eq 75 ]; then scontrol requeue "$SLURM_JOB_ID"; fi
exit "$code"
