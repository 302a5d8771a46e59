#!/bin/sh
# A further machine of a run that the first one has begun:  sh docs/cluster/join.sh CONFIG RUN_FOLDER [MACHINE_RANK]
# CONFIG is the first machine's accelerate config, RUN_FOLDER the run's folder on the shared disk. Under Slurm the
# machine's rank follows from its node; else give it: 1, 2, ...
set -eu
RANK=${3:-$((SLURM_NODEID + 1))}
exec python -m accelerate.commands.launch --config_file "$1" --machine_rank "$RANK" -m qlora_gui.training "$2"
