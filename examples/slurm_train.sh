#!/bin/bash
#SBATCH --job-name=koe-train
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --mem=512G
#SBATCH --time=48:00:00
#SBATCH --requeue
# Training without Ray, on the GPUs of one node or of several: sbatch slurm_train.sh /shared/run
# train.workers of the run must be nodes x GPUs. A job that is requeued goes on from the newest checkpoint.
set -euo pipefail

run=${1:?name the run directory: sbatch slurm_train.sh /shared/run}
source "${KOE_VENV:-/shared/koe/.venv}/bin/activate"

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)
port=$((40000 + SLURM_JOB_ID % 20000))

srun torchrun --nnodes "$SLURM_JOB_NUM_NODES" --nproc-per-node "$SLURM_GPUS_ON_NODE" \
  --rdzv-backend c10d --rdzv-id "$SLURM_JOB_ID" --rdzv-endpoint "$head:$port" \
  -m training --config "$run/config.json" --shards "$run/shards" --out "$run/train"
