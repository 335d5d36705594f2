"""Direct search around fitted weights, for what is wanted of them: fewer misses.

A logistic regression asks how likely each expert is to be used soon, over all experts; misses depend
on the order of those few that are about to leave. Evolution strategy with recombination of the best
half by logarithmic weights (Hansen, "The CMA evolution strategy: a tutorial", 2016, without its
adaptation: a dozen rounds are too few to learn a covariance from).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

Doubles = npt.NDArray[np.float64]

ROUNDS = 10
POPULATION = 12
STEP = 0.08  # of the weights' length, in units of their columns' spread


def search(
    start: Doubles,
    value: Callable[[Doubles], float],
    rng: np.random.Generator,
    progress: Callable[[int], None] = lambda done: None,
) -> Doubles:
    """Look near `start` for a higher `value`, which several threads ask for at once.

    Axes at 0 stay there; the others are taken to be of one scale. The result does not depend on the
    number of threads. It is the centre of the last round: the best of many noisy draws would flatter.
    """
    live = start != 0
    centre = start.astype(np.float64)
    if not live.any():
        return centre
    step = STEP * np.linalg.norm(centre) / np.sqrt(live.sum())
    kept = POPULATION // 2
    shares = np.log(kept + 0.5) - np.log(np.arange(1, kept + 1))
    shares /= shares.sum()
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for done in range(ROUNDS):
            progress(done)
            draws = rng.standard_normal((POPULATION, len(centre))) * live
            values = np.array(list(pool.map(value, centre + step * draws)))
            # Stable, so that equals are ranked alike on every machine.
            best = np.argsort(-values, kind="stable")[:kept]
            centre = centre + step * shares @ draws[best]
    return centre
