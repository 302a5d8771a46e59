#!/bin/sh
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
# One run over several nodes:  sbatch docs/cluster/slurm.sh --base-model ... --dataset ...
# Every node sees the same folder and virtual environment (put its bin on the PATH). The first node makes the run and
# writes to it; the others join. GPUS is how many processes a node has, ADAPTERS where runs lie, PORT any free one, and
# TYPE=FSDP shares the 4-bit base out among all of them.
set -eu
GPUS=${GPUS:-4} ADAPTERS=${ADAPTERS:-adapters} PORT=${PORT:-29500} TYPE=${TYPE:-MULTI_GPU}
RUN=job-$SLURM_JOB_ID
FIRST=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
CONFIG=$(mktemp "${TMPDIR:-/tmp}/accelerate-XXXXXX.yaml")
mkdir -p "$ADAPTERS"
cat >"$CONFIG" <<END
compute_environment: LOCAL_MACHINE
distributed_type: $TYPE
num_machines: $SLURM_JOB_NUM_NODES
num_processes: $((SLURM_JOB_NUM_NODES * GPUS))
machine_rank: 0
main_process_ip: $FIRST
main_process_port: $PORT
mixed_precision: 'no'
END
srun --nodes=1 --ntasks=1 --nodelist="$FIRST" python app.py --headless-train --answers 0 \
    --adapters-dir "$ADAPTERS" --name "$RUN" --accelerate-config "$CONFIG" "$@" &
LEADER=$!
until [ -e "$ADAPTERS/$RUN/run.json" ]; do
    kill -0 "$LEADER" # ends this script where the leader refused the settings
    sleep 1
done
srun --nodes=$((SLURM_JOB_NUM_NODES - 1)) --ntasks-per-node=1 --exclude="$FIRST" \
    sh docs/cluster/join.sh "$CONFIG" "$ADAPTERS/$RUN" &
wait "$LEADER"
