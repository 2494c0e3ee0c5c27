#!/bin/bash
# A sweep on Slurm nodes: one Ray on all of them, the command on the first. Filled in by: python cluster/render.py slurm.sh > amlris.sbatch
# Submit it from the project's folder, on a file system all nodes see, after `make env` and `ray get-auth-token --generate`.
# Submitted again it continues: a run is found by its settings and data.
# Whole nodes: symmetric-run refuses a node where another Ray runs, and at its end stops every Ray of the user's there.
#SBATCH --job-name=${NAME}
#SBATCH --partition=${PARTITION}
#SBATCH --nodes=${GPU_NODES}
#SBATCH --exclusive
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=${GPU_CPUS}
#SBATCH --gpus-per-node=${GPUS_PER_NODE}
#SBATCH --mem=0
#SBATCH --time=${TIME}
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail
cd "$SLURM_SUBMIT_DIR"
export RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0 PATH="$PWD/.venv/bin:$PATH"
export AMLRIS_HOME="$SLURM_SUBMIT_DIR/runs"
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p) # which reads all of it: a pipe closed too soon would end the job
port=$((20000 + SLURM_JOB_ID % 20000))
export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=300

# Before its time is up the job is told, and tells the command, which saves what it trains where it stands. The command alone, which runs on
# this node: a signal to the whole step would end Ray first.
command=$(mktemp)
trap 'kill -TERM "$(cat "$command")" || true' TERM

# RAY_ADDRESS is for the command alone: `ray start` must not see it
srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" --cpus-per-task="$SLURM_CPUS_PER_TASK" \
    ray symmetric-run --address "$head:$port" --min-nodes "$SLURM_JOB_NUM_NODES" \
    --num-cpus="$SLURM_CPUS_PER_TASK" --num-gpus="${GPUS_PER_NODE}" --include-dashboard=false -- \
    env RAY_ADDRESS="$head:$port" bash -c 'echo $$ > "$0"; exec "$@"' "$command" python -m orchestrator ${COMMAND} &
step=$! code=0
while kill -0 "$step" 2> /dev/null; do # a signal ends a `wait`
    wait "$step" && code=0 || code=$?
done
if [ "$code" = 0 ] && [ ! -s "$command" ]; then # symmetric-run ends well where Ray did not start
    echo "Ray did not start, and the command did not run" >&2
    code=1
fi
rm "$command"
exit "$code"
