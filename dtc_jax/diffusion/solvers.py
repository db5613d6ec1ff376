"""The solvers by name."""

from typing import Literal, get_args

from dtc_jax.diffusion.ddim import DDIM
from dtc_jax.diffusion.dpm_solver import DPMSolverMultistep
from dtc_jax.diffusion.solver import Solver

SolverName = Literal["ddim", "dpmsolver++"]


def make_solver(name: SolverName, eta: float = 0.0) -> Solver:
    """A solver by its name.

    Args:
        name: `ddim`, or `dpmsolver++` (2M, as `DPMSolverMultistep`), diffusers' name of the algorithm.
        eta: noise that DDIM adds, in [0, 1]; the other adds none.

    Raises:
        ValueError: unknown name, or an eta that the solver cannot have.
    """
    if name == "ddim":
        return DDIM(eta=eta)
    if name not in get_args(SolverName):
        raise ValueError(f"unknown solver {name!r}: choose one of {', '.join(get_args(SolverName))}")
    if eta != 0.0:
        raise ValueError(f"eta must be 0 for {name}, which adds no noise, not {eta}")
    return DPMSolverMultistep()
