"""Which process of how many this one is, as its launcher says in the environment; processes need no communication."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from ...data.errors import InputError

# Each launcher's variables for the process's number, the number of processes, its number on this machine, and how many there
# are on it. srun sets no such variable that is simple to read, and its tasks have GPUs of their own as a rule. It sets
# SLURM_NTASKS too, but so does sbatch for a script that runs once.
_LAUNCHERS = {
    "torchrun or accelerate launch": ("RANK", "WORLD_SIZE", ("LOCAL_RANK",), "LOCAL_WORLD_SIZE"),
    "Open MPI's mpirun": (
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_SIZE",
        ("OMPI_COMM_WORLD_LOCAL_RANK",),
        "OMPI_COMM_WORLD_LOCAL_SIZE",
    ),
    # srun may speak PMI too.
    "MPICH's or Intel's mpirun": ("PMI_RANK", "PMI_SIZE", ("MPI_LOCALRANKID", "SLURM_LOCALID"), "MPI_LOCALNRANKS"),
    "srun": ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", ("SLURM_LOCALID",), ""),
}


@dataclass(frozen=True)
class Rank:
    """Process `index` (0-based) of `world`; `local` is its number among the `beside` on the same machine, 1 if not known."""

    index: int = 0
    world: int = 1
    local: int = 0
    beside: int = 1

    def share(self, count: int) -> range:
        """Which of the numbers 0 to count − 1 are this process's: every `world`-th one."""
        return range(self.index, count, self.world)

    def label(self) -> str:
        """For log lines: 'rank 0 of 2'; empty where there is but one process."""
        return f"rank {self.index} of {self.world}" if self.world > 1 else ""


def this_rank(environment: Mapping[str, str] = os.environ) -> Rank:
    """This process's rank by the variables of torchrun, accelerate launch, srun or mpirun; the only one if there are none.

    Where launchers are nested (srun starting torchrun) the innermost counts. Raises InputError, naming the variable, for values
    that are no rank.
    """
    for launcher, (index, world, locals_, beside) in _LAUNCHERS.items():
        if index in environment and world in environment:
            size = _number(environment, world, launcher, 1, None)
            found = _number(environment, index, launcher, 0, size)
            local = next((name for name in locals_ if name in environment), index)
            there = _number(environment, beside, launcher, 1, None) if beside in environment else 1
            return Rank(found, size, _number(environment, local, launcher, 0, None), there)
    return Rank()


def _number(environment: Mapping[str, str], name: str, launcher: str, minimum: int, below: int | None) -> int:
    text = environment[name]
    value = int(text) if text.isascii() and text.isdigit() and len(text) < 10 else -1
    if value < minimum or (below is not None and value >= below):
        wanted = f"a number from {minimum}" + (f" to {below - 1}" if below else "")
        raise InputError(f"environment variable {name}={text!r:.40}: expected {wanted}, as {launcher} sets it")
    return value
