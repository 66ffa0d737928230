"""The options that commands share."""

import dataclasses
import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from sever.config.request import Request
from sever.utils.device_list import device_entries
from sever.utils.errors import SeveralDevices
from sever.utils.rank import world_of

FILE = click.Path(path_type=Path)


def _set_debug(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    ctx.meta["debug"] = ctx.meta.get("debug") or value


def options(*several: Any) -> Any:
    """Several options as one decorator, in their order."""

    def add(command: Any) -> Any:
        for option in reversed(several):
            command = option(command)
        return command

    return add


def process_per_device(device: str) -> None:
    """Begin anew with a process for each of several listed devices, before anything heavy is imported.

    Raises:
        SeveralDevices: this process is alone, and several are listed.
        DeviceError: the text names no devices.
    """
    entries = device_entries(device)
    if len(entries) > 1 and world_of(os.environ).size == 1:
        raise SeveralDevices(["CPU" if entry == "cpu" else f"GPU {entry}" for entry in entries])


def _numbers(_: click.Context, __: click.Parameter, value: str | None) -> tuple[float, ...] | None:
    try:
        return None if value is None else tuple(float(part) for part in value.split(","))
    except ValueError as error:
        raise click.BadParameter(f"expected numbers separated by commas, received '{value}'") from error


debug_option = click.option(
    "--debug",
    is_flag=True,
    expose_value=False,
    callback=_set_debug,
    help="Add the traceback to an error message.",
)
device_option = click.option(
    "-d",
    "--device",
    default="auto",
    show_default=True,
    help="auto (the first n_gpu GPUs, the CPU where there is none), cpu, the number of a GPU, or a list: one "
    "process for each of 2,3 or of cpu,cpu.",
)
set_option = click.option(
    "-s",
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a config key, e.g. -s optimizer.encoder.lr=7e-5. Repeatable.",
)
trust_option = click.option(
    "--trust",
    is_flag=True,
    help="Import code that is not the program's own, where a checkpoint names its import path. Without it "
    "only what a -c FILE or -s names too is imported.",
)
_checkpoints = click.option(
    "-r",
    "--resume",
    "checkpoints",
    type=FILE,
    multiple=True,
    required=True,
    metavar="CKPT",
    help="The checkpoint of the model. Several are an ensemble.",
)
_config = click.option(
    "-c",
    "--config",
    type=FILE,
    metavar="FILE",
    help="A config in the place of the one that the checkpoint holds.",
)


_averaging = options(
    click.option(
        "--average",
        default="mean",
        show_default=True,
        metavar="RULE",
        help="Of several models: mean, rms, geometric, max or vote.",
    ),
    click.option(
        "--weights",
        metavar="W,W,…",
        callback=_numbers,
        help="Of the models, in the order of -r. Default: alike.",
    ),
    click.option(
        "--tta",
        default="none",
        show_default=True,
        metavar="FLIPS",
        help="Flips at test time: none, hflip, vflip or both.",
    ),
    click.option(
        "--precision",
        type=click.Choice(["fp32", "bf16", "fp16"]),
        default="fp32",
        show_default=True,
        help="Of the models' forward pass.",
    ),
)
settings_option = click.option(
    "--settings",
    type=FILE,
    metavar="FILE.yml",
    help="Thresholds and areas that sever tune wrote, in the place of the config's.",
)
out_of_fold_option = click.option(
    "--out-of-fold", is_flag=True, help="Each model on the images that it was validated on, all together."
)
images_option = click.option(
    "-i",
    "--images",
    type=FILE,
    metavar="DIR",
    help="The images. Default: predict.images under the config's data_dir.",
)


def output_option(default: str | None, help_text: str) -> Any:
    """`-o`: the file that a command writes."""
    suffix = Path(default).suffix if default else ".json"
    return click.option(
        "-o",
        "--output",
        type=FILE,
        default=default,
        show_default=True,
        metavar=f"FILE{suffix}",
        help=help_text,
    )


def of_models(command: Callable[..., Any]) -> Any:
    """Give a command the options of trained models, which it gets together as a `Request`."""

    @functools.wraps(command)
    def with_request(**given: Any) -> Any:
        names = [field.name for field in dataclasses.fields(Request) if field.name in given]
        request = Request(**{name: given.pop(name) for name in names})
        process_per_device(request.device)
        return command(request, **given)

    return options(_checkpoints, _config, _averaging, device_option, set_option, trust_option, debug_option)(
        with_request
    )


def share_option(name: str, default: float, help_text: str) -> Any:
    """An option whose value is a share in [0, 1]."""
    return click.option(
        name, type=click.FloatRange(0, 1), default=default, show_default=True, metavar="SHARE", help=help_text
    )
