#!/usr/bin/env bash
# Four workers on one search: STORAGE=postgresql://zoo@db/zoo sbatch docs/clusters/slurm.sh
# Options after the script's name are added to the search: sbatch docs/clusters/slurm.sh --trials 200
#SBATCH --job-name=pocketzoo
#SBATCH --array=0-3
#SBATCH --cpus-per-task=4
#SBATCH --mem=8G
#SBATCH --time=08:00:00
#SBATCH --output=%x-%A-%a.log
set -euo pipefail
: "${STORAGE:?is not set; expected such as postgresql://zoo@db/zoo, with the password in ~/.pgpass}"
export OMP_NUM_THREADS="${SLURM_CPUS_PER_TASK:-4}"

# The folder lies on a disk that all nodes see. Where there is none: --out "runs/digits-$SLURM_ARRAY_TASK_ID".
exec pocketzoo search mobilenet_v2 --data digits --macs 1M --trials 100 \
    --storage "$STORAGE" --out runs/digits "$@"
