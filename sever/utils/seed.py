"""Seeds: random numbers depend on the sample, epoch and process, not on when they are drawn."""

import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch


def seed_everything(seed: int) -> None:
    """Seed the global generators of Python, NumPy and torch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def seed_process(seed: int, rank: int, epoch: int = 0) -> None:
    """Seed the global generators of a process by its rank; rank 0 gets the run's seed itself.

    A run that is resumed with more processes than before gives the epoch too.
    """
    drawn = np.random.default_rng([seed, rank, epoch]).integers(2**63)
    seed_everything(int(drawn) if rank or epoch else seed)


def random_states(device: torch.device) -> dict[str, Any]:
    """The states of the global random generators and of the device's, as plain values and tensors."""
    version, keys, gauss_next = random.getstate()
    algorithm, words, at, has_gauss, gauss = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        "python": [version, list(keys), gauss_next],
        "numpy": [str(algorithm), np.asarray(words).tolist(), int(at), int(has_gauss), float(gauss)],
    }


def restore_random_states(states: dict[str, Any], device: torch.device) -> None:
    """Restore the states that `random_states` returned."""
    torch.set_rng_state(states["torch"])
    if device.type == "cuda" and states["cuda"] is not None:
        torch.cuda.set_rng_state(states["cuda"], device)
    version, keys, gauss_next = states["python"]
    random.setstate((version, tuple(keys), gauss_next))
    algorithm, words, at, has_gauss, gauss = states["numpy"]
    np.random.set_state((algorithm, np.asarray(words, dtype=np.uint32), at, has_gauss, gauss))


@dataclass(frozen=True)
class SampleRandom:
    """The random generators of one sample: the same for any number of workers, and after a resume."""

    numpy: np.random.Generator
    python: random.Random

    @classmethod
    def of(cls, seed: int, epoch: int, index: int, draw: int = 0) -> "SampleRandom":
        """The generators of a sample in an epoch.

        Args:
            seed: the run's seed, at least 0.
            epoch: at least 0.
            index: the sample's place in its data set, at least 0.
            draw: how often the sample was drawn in the epoch before.
        """
        generator = np.random.default_rng([seed, epoch, index, *([draw] if draw else [])])
        return cls(generator, random.Random(int(generator.integers(2**63))))
