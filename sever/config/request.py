"""What a user asks of trained models on the command line."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Request:
    """Which models are used, how they are put together, and what is changed of their config.

    Attributes:
        checkpoints: of the models; several are an ensemble.
        config: a file that takes the place of the config in the checkpoint; of several checkpoints each
            keeps its model and normalisation.
        settings: YAML with a `predict:` section, as `sever tune` writes it, merged over the config.
        overrides: `KEY=VALUE`.
        device: see `choose_device`.
        precision: of the models' forward pass: `fp32`, `bf16` or `fp16`.
        average: `mean`, `rms`, `geometric`, `max` or `vote`.
        weights: of the models; None weighs them alike.
        tta: flips at test time: `none`, `hflip`, `vflip` or `both`.
        trust: import what the checkpoints name, whatever it is.
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
        """What is read, which no output may replace."""
        return [*self.checkpoints, *(path for path in (self.config, self.settings) if path)]
