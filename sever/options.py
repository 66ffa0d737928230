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


def option(declaration: str, help_text: str, name: str | None = None, **settings: Any) -> Any:
    """An option on one line.

    Args:
        declaration: its names and what stands for its value, which is a path unless `settings` has a type:
            `-o --output FILE.csv`; without such, and without a type, it is a flag.
        help_text: what it does.
        name: of the command's argument, where it is not the option's.
        settings: for `click.option`; a default is shown.
    """
    words = declaration.split()
    names = [word for word in words if word.startswith("-")]
    metavar = " ".join(words[len(names) :])
    if metavar:
        settings = {"type": FILE, "metavar": metavar, **settings}
    settings.setdefault("is_flag", "type" not in settings)
    return click.option(
        *names, *([name] if name else []), help=help_text, show_default="default" in settings, **settings
    )


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


debug_option = option(
    "--debug", "Add the traceback to an error message.", expose_value=False, callback=_set_debug
)
device_option = option(
    "-d --device",
    "auto (the first n_gpu GPUs, the CPU where there is none), cpu, the number of a GPU, or a list: one "
    "process for each of 2,3 or of cpu,cpu.",
    type=str,
    default="auto",
)
set_option = option(
    "-s --set KEY=VALUE",
    "Override a config key, e.g. -s optimizer.encoder.lr=7e-5. Repeatable.",
    "overrides",
    type=str,
    multiple=True,
)
trust_option = option(
    "--trust",
    "Import code that is not the program's own, where a checkpoint names its import path. Without it "
    "only what a -c FILE or -s names too is imported.",
)
_checkpoints = click.option(
    "-r",
    "--resume",
    "checkpoints",
    type=FILE,
    multiple=True,
    metavar="CKPT",
    help="The checkpoint of the model. Several are an ensemble.  [required]",
)
_config = option("-c --config FILE", "A config in the place of the one that the checkpoint holds.")
_averaging = options(
    option(
        "--average",
        "Of several models.",
        type=click.Choice(["mean", "rms", "geometric", "max", "vote"]),
        default="mean",
    ),
    option(
        "--weights W,W,…", "Of the models, in the order of -r. Default: alike.", type=str, callback=_numbers
    ),
    option(
        "--tta",
        "Flips at test time.",
        type=click.Choice(["none", "hflip", "vflip", "both"]),
        default="none",
    ),
    option(
        "--precision",
        "Of the models' forward pass.",
        type=click.Choice(["fp32", "bf16", "fp16"]),
        default="fp32",
    ),
)
settings_option = option(
    "--settings FILE.yml", "Thresholds and areas that sever tune wrote, in the place of the config's."
)
out_of_fold_option = option(
    "--out-of-fold", "Each model on the images that it was validated on, all together."
)
images_option = option("-i --images DIR", "The images. Default: predict.images under the config's data_dir.")


def output_option(default: str, help_text: str) -> Any:
    """`-o`: the file that a command writes."""
    return option(f"-o --output FILE{Path(default).suffix}", help_text, default=default)


def of_models(command: Callable[..., Any]) -> Any:
    """Give a command the options of trained models, which it gets together as a `Request`."""

    @functools.wraps(command)
    def with_request(**given: Any) -> Any:
        names = [field.name for field in dataclasses.fields(Request) if field.name in given]
        request = Request(**{name: given.pop(name) for name in names})
        if not request.checkpoints:
            raise click.UsageError(_give_checkpoint(request))
        process_per_device(request.device)
        return command(request, **given)

    return options(_checkpoints, _config, _averaging, device_option, set_option, trust_option, debug_option)(
        with_request
    )


def _give_checkpoint(request: Request) -> str:
    """What to type where no checkpoint is given: that of the newest run, of `-c FILE` if there is one."""
    from sever.engine.run_folder import RunFolder

    save_dir, name = "saved/", None
    if request.config:
        from sever.config.load import load_config

        checked = load_config(request.config, request.overrides).checked
        save_dir, name = checked.save_dir, checked.name
    run = RunFolder.newest(save_dir, name)
    if run is None:
        where = Path(save_dir, name or "")
        return f"give -r CKPT; there is no run in {where} yet, and sever train -c FILE starts one"
    return f"give -r CKPT; the newest is {run.best if run.best.is_file() else run.newest_first[0]}"


def share_option(name: str, default: float, help_text: str) -> Any:
    """An option whose value is a share in [0, 1]."""
    return option(f"{name} SHARE", help_text, type=click.FloatRange(0, 1), default=default)
