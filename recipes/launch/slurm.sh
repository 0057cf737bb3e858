#!/bin/bash
# A stage on several nodes under Slurm: one launcher on each node, which starts a process for each of its GPUs.
#
#   sbatch --nodes 2 --gpus-per-node 8 recipes/launch/slurm.sh recipes/single_shot.py --preset paper --from checkpoints/align \
#       --data /shared/animeshooter --out /shared/checkpoints/single_shot
#
# The working directory, data and checkpoints must lie where all nodes see them. LAUNCH_CONFIG chooses another launch
# configuration (recipes/launch/zero2.yaml, zero3.yaml, fsdp2.yaml), PORT another port on the first node, PROCESSES_PER_NODE
# another number of processes than GPUs; LAUNCH_ARGUMENTS holds more arguments of `accelerate launch`.
#
# Five minutes before the time limit, and when the job is to make room for another, Slurm sends SIGTERM: the run finishes its
# step, saves, and ends with code 75, "not finished". The job is then queued again, with the same command, and goes on. It is
# queued again as well when a node or process was lost (code 75 too), but not after an error that somebody has to mend (code 2).
#SBATCH --job-name=animeshooter
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log

set -u
NOT_FINISHED=75
nodes=${SLURM_JOB_NUM_NODES:?run this with sbatch}
each=${PROCESSES_PER_NODE:-${SLURM_GPUS_ON_NODE:-1}}
export MAIN_ADDRESS MAIN_PORT=${PORT:-29500} NODES=$nodes PROCESSES=$((nodes * each))
MAIN_ADDRESS=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export LAUNCH_CONFIG=${LAUNCH_CONFIG:-recipes/launch/ddp.yaml}
export PET_SHUTDOWN_TIMEOUT=${PET_SHUTDOWN_TIMEOUT:-270}  # how long a launcher waits for its processes to save (torch: 30 s)
export PYTHON=${PYTHON:-python}

# Each node's own launcher; the number of processes is checked by the run itself.
srun --ntasks="$nodes" --ntasks-per-node=1 --kill-on-bad-exit=0 bash -c '
    exec "$PYTHON" recipes/launch/launch.py --config_file "$LAUNCH_CONFIG" \
        --num_machines "$NODES" --num_processes "$PROCESSES" --machine_rank "$SLURM_NODEID" \
        --main_process_ip "$MAIN_ADDRESS" --main_process_port "$MAIN_PORT" ${LAUNCH_ARGUMENTS:-} \
        "$@" --set train.processes="$PROCESSES"
' launch "$@" &
running=$!
trap 'kill -TERM "$running" 2>/dev/null' TERM INT

while wait "$running"; kill -0 "$running" 2>/dev/null; do :; done  # a signal ends a wait before the run has saved
wait "$running"
code=$?

if [ "$code" -eq "$NOT_FINISHED" ]; then
    echo "slurm.sh: not finished; queued again, to go on from the newest snapshot"
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
