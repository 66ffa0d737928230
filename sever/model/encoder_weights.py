"""Pretrained encoder weights: by name from the hub, or from a local file, checked key by key."""

import logging
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from segmentation_models_pytorch.encoders import encoders as SMP_ENCODERS
from torch import nn

from sever.engine.checkpoint import key_faults, not_finite, read_tensors
from sever.utils.did_you_mean import did_you_mean
from sever.utils.errors import ConfigError, SeverError, first_few, in_short
from sever.utils.printing import printable

_WHERE = "arch.args.encoder_weights"
_CURE = "Give a whole .safetensors or .pth file of tensors, or null for random weights"
_TIMM = "tu-"  # SMP's prefix for an encoder of timm
_FILE_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")

logger = logging.getLogger(__name__)


def check_encoder_name(name: str) -> None:
    """Raise a `ConfigError` with the nearest name for an encoder that neither SMP nor timm has."""
    if name in SMP_ENCODERS or (name.startswith(_TIMM) and timm.is_model(name[len(_TIMM) :])):
        return
    known = [*SMP_ENCODERS, *(_TIMM + model for model in timm.list_models())]
    raise ConfigError(
        f"arch.args.encoder_name: '{name}' is not a known encoder.{did_you_mean(name, known)} SMP's own "
        f"encoders: {', '.join(sorted(SMP_ENCODERS))}. Any encoder of timm goes by tu-<its name>."
    )


def for_any_size(
    make_network: Callable[..., nn.Module], *, encoder_name: str, **network_args: Any
) -> nn.Module:
    """Make a network whose encoder takes images of any size, where timm can resize its embeddings."""
    config = timm.get_pretrained_cfg(encoder_name[len(_TIMM) :]) if encoder_name.startswith(_TIMM) else None
    if config is not None and config.fixed_input_size:
        try:
            return make_network(encoder_name=encoder_name, dynamic_img_size=True, **network_args)
        except TypeError as error:
            if "dynamic_img_size" not in str(error):
                raise
    return make_network(encoder_name=encoder_name, **network_args)


def is_file(weights: str) -> bool:
    """Whether `encoder_weights` means a local file rather than a name such as `imagenet`."""
    return weights.endswith(_FILE_SUFFIXES) or "/" in weights or "\\" in weights


def hub_name(encoder_name: str, weights: str) -> str | bool:
    """SMP's name of pretrained weights, which is True for an encoder of timm.

    Raises:
        ConfigError: there are no such weights for the encoder.
    """
    if encoder_name.startswith(_TIMM):
        known = ["imagenet"]
    else:
        known = list(SMP_ENCODERS[encoder_name]["pretrained_settings"])
    if weights not in known:
        raise ConfigError(
            f"{_WHERE}: '{weights}' is not known for {encoder_name}.{did_you_mean(weights, known)} "
            f"Known: {', '.join(known)}, null (random), or the path of a .safetensors or .pth file."
        )
    return True if encoder_name.startswith(_TIMM) else weights


def download_failed(encoder_name: str, weights: str, reason: Exception) -> ConfigError:
    """The message for weights that could not be fetched."""
    first_line = (str(reason) or type(reason).__name__).splitlines()[0]
    return ConfigError(
        f"{_WHERE}: the '{weights}' weights of {encoder_name} could not be downloaded: {first_line}",
        f"  Without a network, give the path of a .safetensors or .pth file with them "
        f"(-s {_WHERE}=weights.safetensors), or null for random weights.",
    )


def load_from_file(encoder: nn.Module, path: str | Path) -> None:
    """Load an encoder's weights from a local file.

    The file may hold the encoder alone or a whole classifier or segmentation model. It must have every
    weight of the encoder in its shape; unused ones are logged.

    Args:
        encoder: an encoder with three input channels (R, G, B).
        path: a `.safetensors` file, or one of `torch.save` with a state dict.

    Raises:
        ConfigError: the file cannot be read, or does not fit; the message lists the keys.
    """
    tensors = _read_tensors(Path(path))
    expected = encoder.state_dict()
    found, used = {}, set()
    for key in expected:
        source = next((name for name in _file_names(key) if name in tensors), None)
        if source is not None:
            found[key] = tensors[source]
            used.add(source)
        elif key.endswith("num_batches_tracked"):  # older files lack these counters
            found[key] = expected[key]
    faults = key_faults(expected, found, extra=False)
    if faults:
        raise ConfigError(
            f"{_WHERE}: '{path}' does not fit the encoder ({len(faults)} of {len(expected)} keys):",
            *first_few(faults, 6),
            f"  Its own keys start with: {', '.join(sorted(tensors)[:3])}",
        )
    damaged = not_finite(found)
    if damaged:
        raise ConfigError(f"{_WHERE}: '{path}' holds what is not finite: {in_short(damaged)}. {_CURE}")
    encoder.load_state_dict(found)
    left_over = sorted(set(tensors) - used)
    logger.info("Encoder weights: %d tensors from %s", len(used), path)
    if left_over:
        logger.debug("Not used of %s: %s", path, printable(", ".join(left_over)))


def set_input_planes(encoder: nn.Module, planes: Sequence[Sequence[int]]) -> None:
    """Give the first convolution an input channel for each of `planes`: RGB planes (0 is R) to be summed.

    A grey channel then uses the pretrained R, G or B weights, unscaled.
    """
    if tuple(map(tuple, planes)) == ((0,), (1,), (2,)):
        return
    first = [
        m for m in encoder.modules() if isinstance(m, nn.Conv2d) and m.in_channels == 3 and m.groups == 1
    ]
    if not first:
        raise ConfigError("arch.args.in_channels: this encoder has no first convolution of three channels")
    for module in first:  # several where an encoder starts with parallel branches
        kernels = [module.weight[:, list(summed)].sum(dim=1) for summed in planes]
        module.weight = nn.Parameter(torch.stack(kernels, dim=1).detach())
        module.in_channels = len(planes)


def _read_tensors(path: Path) -> dict[str, torch.Tensor]:
    if not path.is_file():
        raise ConfigError(f"{_WHERE}: '{path}' is no file (looked for from the folder {Path.cwd()})")
    try:
        state = load_file(path) if path.suffix == ".safetensors" else read_tensors(path)
    except (SeverError, MemoryError):
        raise
    except Exception as error:  # what safetensors raises on a file of any other kind is not bounded
        raise ConfigError(f"{_WHERE}: '{path}' cannot be read: {error}. {_CURE}") from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not all(isinstance(t, torch.Tensor) for t in state.values()):
        raise ConfigError(f"{_WHERE}: '{path}' is not a state dict (names with tensors)")
    return state


def _file_names(key: str) -> list[str]:
    """The names that an encoder's weight may have in a file, likeliest first."""
    bare = key.removeprefix("model.")
    dotted = re.sub(r"^([a-z]+)_(\d+)\.", r"\1.\2.", bare)  # timm's features flatten `stages.0`
    return [key, bare, dotted, f"encoder.{key}", f"network.encoder.{key}"]
