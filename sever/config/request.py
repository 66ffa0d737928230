"""What a user asks of trained models on the command line."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Request:
    """Which models are used, how they are combined, and what is changed in their config.

    Its fields are the options of the same names in `sever.options`. With several checkpoints each model
    keeps its own `arch` and normalisation, whatever `config` says.
    """

    checkpoints: tuple[Path, ...]
    config: Path | None = None
    settings: Path | None = None
    overrides: tuple[str, ...] = ()
    device: str = "auto"
    precision: str = "fp32"
    average: str = "mean"
    weights: tuple[float, ...] | None = None
    tta: str = "none"
    trust: bool = False

    @property
    def files(self) -> list[Path]:
        """The files that are read, which no output may replace."""
        return [*self.checkpoints, *(path for path in (self.config, self.settings) if path)]
