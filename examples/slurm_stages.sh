#!/bin/bash
#SBATCH --job-name=koe-stages
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=32
#SBATCH --mem=96G
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --requeue
# koe's stages on all nodes of the job: sbatch slurm_stages.sh /shared/pipeline.yaml
# koe is installed in the same place on all nodes (KOE_VENV), and run_dir lies on a shared disk or a store.
set -euo pipefail

config=${1:?name the configuration: sbatch slurm_stages.sh /shared/pipeline.yaml}
source "${KOE_VENV:-/shared/koe/.venv}/bin/activate"

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)
port=$((20000 + SLURM_JOB_ID % 20000)) # jobs of others on the same node have other numbers
ip=$(srun --nodes=1 --ntasks=1 -w "$head" hostname -I | awk '{print $1}')

# All nodes of a Ray need the same token; srun hands the environment to them.
export RAY_AUTH_MODE=token
RAY_AUTH_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
export RAY_AUTH_TOKEN
export RAY_ADDRESS="$ip:$port"
memory=$((SLURM_MEM_PER_NODE * 1000 * 1000 * 7 / 10)) # of megabytes, less Ray's object store

srun --nodes=1 --ntasks=1 -w "$head" \
  ray start --head --block --node-ip-address="$ip" --port="$port" --include-dashboard=false \
  --num-cpus="$SLURM_CPUS_PER_TASK" --memory="$memory" &
for _ in $(seq 60); do
  if srun --overlap --nodes=1 --ntasks=1 -w "$head" ray health-check --address "$RAY_ADDRESS"; then break; fi
  sleep 2
done
if [ "$SLURM_JOB_NUM_NODES" -gt 1 ]; then
  srun --nodes=$((SLURM_JOB_NUM_NODES - 1)) --ntasks=$((SLURM_JOB_NUM_NODES - 1)) --exclude="$head" \
    ray start --address="$RAY_ADDRESS" --block --num-cpus="$SLURM_CPUS_PER_TASK" --memory="$memory" &
fi

# The driver. wait_minutes: the other nodes may still be joining. A job that is requeued resumes.
srun --overlap --nodes=1 --ntasks=1 -w "$head" \
  koe run -c "$config" --to interleave --set ray.address="$RAY_ADDRESS" --set ray.wait_minutes=5
