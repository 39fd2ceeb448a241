#!/bin/bash
#SBATCH --job-name=koe-train-ray
#SBATCH --nodes=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --mem=512G
#SBATCH --time=48:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
# Training on the Ray of one node: sbatch slurm_train_ray.sh /shared/pipeline.yaml
# A signal to all processes would end Ray's servers too. With B: Slurm sends SIGUSR1 to this script alone, 300
# seconds before the time limit, and koe gets it from here: it writes a checkpoint and ends with 75.
set -euo pipefail

config=${1:?name the configuration: sbatch slurm_train_ray.sh /shared/pipeline.yaml}
source "${KOE_VENV:-/shared/koe/.venv}/bin/activate"

koe train -c "$config" &
training=$!
trap 'kill -USR1 "$training"' USR1
code=0
wait "$training" || code=$?
while kill -0 "$training" 2>/dev/null; do # a trap has ended the wait
  code=0
  wait "$training" || code=$?
done
if [ "$code" -eq 75 ]; then scontrol requeue "$SLURM_JOB_ID"; fi
exit "$code"
