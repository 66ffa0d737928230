"""The options that commands share."""

import dataclasses
import functools
import os
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import click

from sever.config.request import Request
from sever.utils.device_option import device_entries
from sever.utils.errors import SeveralDevices
from sever.utils.launcher_env import world_of

FILE = click.Path(path_type=Path)


def _set_debug(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    ctx.meta["debug"] = ctx.meta.get("debug") or value


def option(declaration: str, help_text: str, name: str | None = None, **settings: Any) -> Any:
    """An option on one line.

    Args:
        declaration: its names, and the metavar of its value: `-o --output FILE.csv`. The value is a path
            unless `settings` has a type; without metavar and type the option is a flag.
        help_text: its help.
        name: the parameter of the command, where it has another name than the option.
        settings: further arguments of `click.option`; a default is shown in the help.
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
    """Ask for a process for each of several listed devices, before anything heavy is imported.

    Raises:
        SeveralDevices: several devices are listed, and this process is alone.
        DeviceError: the text names no devices.
    """
    entries = device_entries(device)
    if len(entries) > 1 and world_of(os.environ).size == 1:
        raise SeveralDevices(["CPU" if entry == "cpu" else f"GPU {entry}" for entry in entries])


def check_files(
    configs: Sequence[Path], overrides: Collection[str] = (), checkpoints: Sequence[Path] = ()
) -> None:
    """Answer what is wrong with files and overrides before torch is imported, which takes seconds.

    Raises:
        CheckpointError: there is no such checkpoint.
        ConfigError: a config cannot be read, is no YAML, or an override has no place in it.
    """
    from sever.config.load import read_values
    from sever.engine.run_folder import check_checkpoint_path

    for path in configs:
        read_values(path, overrides)
    for path in checkpoints:
        check_checkpoint_path(path)


def _numbers(_: click.Context, __: click.Parameter, value: str | None) -> tuple[float, ...] | None:
    try:
        return None if value is None else tuple(float(part) for part in value.split(","))
    except ValueError as error:
        raise click.BadParameter(f"expected numbers separated by commas, received '{value}'") from error


def _choice(name: str, help_text: str, *values: str) -> Any:
    """An option with a choice of values, the first of them its default."""
    return option(name, help_text, type=click.Choice(values), default=values[0])


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
_checkpoints = option(
    "-r --resume CKPT",
    "The checkpoint of the model. Several are an ensemble.  [required]",
    "checkpoints",
    multiple=True,
)
_config = option("-c --config FILE", "A config in the place of the one that the checkpoint holds.")
_averaging = options(
    _choice("--average", "How several models are averaged.", "mean", "rms", "geometric", "max", "vote"),
    option(
        "--weights W,W,…",
        "Weights of the models, in the order of -r. Default: all the same.",
        type=str,
        callback=_numbers,
    ),
    _choice("--tta", "Flips at test time.", "none", "hflip", "vflip", "both"),
    _choice("--precision", "Precision of the models' forward pass.", "fp32", "bf16", "fp16"),
)
settings_option = option(
    "--settings FILE.yml", "Thresholds and areas that sever tune wrote, in the place of the config's."
)
out_of_fold_option = option("--out-of-fold", "Use each model's own validation images, all together.")
images_option = option(
    "-i --images DIR",
    "The images: a folder, an image, a pattern in quotes, or a .txt file of paths. Default: predict.images "
    "under the config's data_dir.",
)


def output_option(default: str, help_text: str) -> Any:
    """`-o`: the file that a command writes."""
    return option(f"-o --output FILE{Path(default).suffix}", help_text, default=default)


def model_options(command: Callable[..., Any]) -> Any:
    """Give a command the options of trained models, which it gets together as a `Request`."""

    @functools.wraps(command)
    def with_request(**given: Any) -> Any:
        names = [field.name for field in dataclasses.fields(Request) if field.name in given]
        request = Request(**{name: given.pop(name) for name in names})
        if not request.checkpoints:
            raise click.UsageError(_missing_checkpoint(request))
        process_per_device(request.device)
        check_files([request.config] if request.config else [], request.overrides, request.checkpoints)
        return command(request, **given)

    return options(_checkpoints, _config, _averaging, device_option, set_option, trust_option, debug_option)(
        with_request
    )


def _missing_checkpoint(request: Request) -> str:
    """The message where `-r` is missing, with the newest run's checkpoint (of `-c FILE` if given)."""
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
