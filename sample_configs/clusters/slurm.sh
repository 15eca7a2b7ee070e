#!/bin/bash
# Two hosts with eight GPUs each: sbatch slurm.sh spec.yaml
# Hosts share the working directory: the run's folder, the data and the plugins are read by all.
#SBATCH --job-name=bigmodel
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --signal=TERM@300
# TERM five minutes before the end: the run saves a checkpoint and stops; torchrun gives it 30 s.
# To go on with it: bigmodel's --resume --out runs/slurm-JOB in place of the spec.

set -euo pipefail
spec=${1:?usage: sbatch slurm.sh SPEC.yaml}
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

exec srun torchrun \
  --nnodes="$SLURM_NNODES" \
  --nproc-per-node="${SLURM_GPUS_ON_NODE:-8}" \
  --rdzv-backend=c10d \
  --rdzv-endpoint="$first:29500" \
  --rdzv-id="$SLURM_JOB_ID" \
  --max-restarts=3 \
  -m bigmodel_cli pretrain "$spec" --out "runs/slurm-$SLURM_JOB_ID"
