"""Random numbers that depend on what they are for, not on when they are drawn."""

import random
from dataclasses import dataclass

import numpy as np
import torch


def seed_everything(seed: int) -> None:
    """Seed the global generators of Python, NumPy and torch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def seed_process(seed: int, rank: int, epoch: int = 0) -> None:
    """Seed the global generators of one of several processes: each draws others, the main one as if alone.

    Args:
        seed: the run's seed, at least 0.
        rank: of the process.
        epoch: of a run that goes on with other processes than before.
    """
    drawn = np.random.default_rng([seed, rank, epoch]).integers(2**63)
    seed_everything(int(drawn) if rank or epoch else seed)


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
