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
command=$(mktemp) # its process id; how it ended stands in a file beside it
trap 'kill -TERM "$(cat "$command")" || true' TERM

# RAY_ADDRESS is for the command alone: `ray start` must not see it
srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" --cpus-per-task="$SLURM_CPUS_PER_TASK" \
    ray symmetric-run --address "$head:$port" --min-nodes "$SLURM_JOB_NUM_NODES" \
    --num-cpus="$SLURM_CPUS_PER_TASK" --num-gpus="${GPUS_PER_NODE}" -- \
    env RAY_ADDRESS="$head:$port" bash -c '"$@" & echo $! > "$0"; wait $!; echo $? > "$0.ended"' "$command" python -m orchestrator ${COMMAND} &
step=$!
pause() { sleep 1 & wait $! || true; } # a signal ends a `wait`, not a `sleep`
while kill -0 "$step" 2> /dev/null && [ ! -s "$command.ended" ]; do pause; done
# symmetric-run stops Ray now. On several nodes it takes another minute to see that Ray is gone, and ends with 1 (Ray 2.60): it ends with this script,
# as soon as no Ray runs on this node.
for _ in {1..30}; do kill -0 "$step" 2> /dev/null && pgrep -u "$UID" -x 'gcs_server|raylet' &> /dev/null && pause; done
if [ -s "$command.ended" ]; then
    code=$(cat "$command.ended")
else
    wait "$step" && code=1 || code=$?
    [ -s "$command" ] || echo "Ray did not start, and the command did not run" >&2
fi
rm -f "$command" "$command.ended"
exit "$code"
