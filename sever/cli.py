"""The `sever` command: options, and one message for a user's mistake."""

import dataclasses
import functools
import os
import signal
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from sever import __version__
from sever.utils.errors import ElsewhereError, PeerError, SeveralDevices, SeverError, Stopped
from sever.utils.processes import Place, note, place_of, started
from sever.utils.request import Request

_FILE = click.Path(path_type=Path)
_USERS_MISTAKE = 2
_INTERRUPTED = 130
_TERMINATED = 143


class _Group(click.Group):
    """Turns a `SeverError` into its message on standard error and exit status 2.

    A command for several devices is done anew by a process for each of them.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta["args"] = list(args)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        began = time.monotonic()
        place = Place()
        try:
            place = place_of(os.environ)
            signal.signal(signal.SIGTERM, functools.partial(_terminate, place))
            note(f"process-{place.rank}", str(os.getpid()))
            if place.processes == 1:
                return super().invoke(ctx)
            return self._invoke_together(ctx, place)
        except SeverError as error:
            _tell(ctx, str(error))
            ctx.exit(error.status)
        except Stopped as stop:
            ctx.exit(stop.status)
        except SeveralDevices as several:
            from sever.utils.launch import launch

            status, message = launch(ctx.meta["args"], several.names, began)
            if message:
                click.echo(f"sever: {message}", err=True)
            ctx.exit(status)
        except KeyboardInterrupt:
            if place.processes == 1:
                click.echo("sever: stopped", err=True)
            ctx.exit(_INTERRUPTED)

    def _invoke_together(self, ctx: click.Context, place: Place) -> Any:
        """Do the command with the other processes; of an error in several of them the first one tells."""
        from sever.utils import distributed

        with distributed.joined(place):
            try:
                return super().invoke(ctx)
            except SeverError as error:
                alone = not isinstance(error, PeerError | ElsewhereError)
                if alone and distributed.is_first_to_fail(error.status):
                    raise
                if isinstance(error, PeerError) and place.is_main and not distributed.is_started_by_sever():
                    raise
                ctx.exit(error.status)
            except Stopped as stop:
                note("status", str(stop.status))
                ctx.exit(0 if distributed.is_started_by_sever() else stop.status)


def _tell(ctx: click.Context, message: str) -> None:
    if ctx.meta.get("debug"):
        traceback.print_exc()
    click.echo(f"sever: {message}", err=True)


def _terminate(place: Place, *_: object) -> None:
    """On SIGTERM leave as on an error, so that nothing half-written stays."""
    if place.processes == 1:
        click.echo("sever: stopped", err=True)
    raise SystemExit(_TERMINATED)


def _set_debug(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    ctx.meta["debug"] = ctx.meta.get("debug") or value


def _options(*options: Any) -> Any:
    def add(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return add


def _numbers(_: click.Context, __: click.Parameter, value: str | None) -> tuple[float, ...] | None:
    try:
        return None if value is None else tuple(float(part) for part in value.split(","))
    except ValueError as error:
        raise click.BadParameter(f"expected numbers separated by commas, received '{value}'") from error


_debug = click.option(
    "--debug",
    is_flag=True,
    expose_value=False,
    callback=_set_debug,
    help="Add the traceback to an error message.",
)
_device = click.option(
    "-d",
    "--device",
    default="auto",
    show_default=True,
    help="auto (the first n_gpu GPUs, the CPU where there is none), cpu, the number of a GPU, or a list: one "
    "process for each of 2,3 or of cpu,cpu.",
)
_set = click.option(
    "-s",
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a config key, e.g. -s optimizer.encoder.lr=7e-5. Repeatable.",
)
_trust = click.option(
    "--trust",
    is_flag=True,
    help="Import code that is not the program's own, where a checkpoint names its import path. Without it "
    "only what a -c FILE or -s names too is imported.",
)
_checkpoints = click.option(
    "-r",
    "--resume",
    "checkpoints",
    type=_FILE,
    multiple=True,
    required=True,
    metavar="CKPT",
    help="The checkpoint of the model. Several are an ensemble.",
)
_config = click.option(
    "-c",
    "--config",
    type=_FILE,
    metavar="FILE",
    help="A config in the place of the one that the checkpoint holds.",
)


_averaging = _options(
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
_settings = click.option(
    "--settings",
    type=_FILE,
    metavar="FILE.yml",
    help="Thresholds and areas that sever tune wrote, in the place of the config's.",
)
_out_of_fold = click.option(
    "--out-of-fold", is_flag=True, help="Each model on the images that it was validated on, all together."
)
_images = click.option(
    "-i",
    "--images",
    type=_FILE,
    metavar="DIR",
    help="The images. Default: predict.images under the config's data_dir.",
)


def _output(default: str | None, help_text: str) -> Any:
    suffix = Path(default).suffix if default else ".json"
    return click.option(
        "-o",
        "--output",
        type=_FILE,
        default=default,
        show_default=True,
        metavar=f"FILE{suffix}",
        help=help_text,
    )


def _of_models(command: Callable[..., Any]) -> Any:
    """Give a command the options of trained models, which it gets together as a `Request`."""

    @functools.wraps(command)
    def with_request(**options: Any) -> Any:
        names = [field.name for field in dataclasses.fields(Request) if field.name in options]
        request = Request(**{name: options.pop(name) for name in names})
        return command(request, **options)

    return _options(_checkpoints, _config, _averaging, _device, _set, _trust, _debug)(with_request)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="sever")
@_debug
def cli() -> None:
    """From steel images and a YAML file to the best possible submission."""


@cli.command()
@click.option(
    "-c",
    "--config",
    "configs",
    type=_FILE,
    multiple=True,
    metavar="FILE",
    help="The experiment. Repeatable: each is trained in turn.",
)
@click.option(
    "-r",
    "--resume",
    "checkpoint",
    type=_FILE,
    metavar="CKPT",
    help="Go on from this checkpoint: in its own run, or under -c FILE in a new one. `-r auto` goes on with "
    "the latest run of -c FILE, or starts its first one.",
)
@click.option("--dry-run", is_flag=True, help="Check everything and print the plan; train nothing.")
@click.option("--all-folds", is_flag=True, help="Train once for each of data_loader.args.folds.")
@_options(_device, _set, _trust, _debug)
def train(
    configs: tuple[Path, ...],
    checkpoint: Path | None,
    dry_run: bool,
    all_folds: bool,
    device: str,
    overrides: tuple[str, ...],
    trust: bool,
) -> None:
    """Train experiments, or continue a run."""
    if not configs and not checkpoint:
        raise click.UsageError("give -c FILE to start a run, or -r CKPT to continue one")
    latest = checkpoint == Path("auto")
    if latest and not configs:
        raise click.UsageError("-r auto needs -c FILE, whose latest run it goes on with")
    if checkpoint and not latest and len(configs) > 1:
        raise click.UsageError("-r CKPT goes with one -c FILE at most")
    if checkpoint and not latest and all_folds:
        raise click.UsageError("--all-folds starts new runs, and does not go with -r CKPT")
    from sever import main

    first = None if latest else checkpoint
    main.train(configs, first, device, overrides, dry_run, all_folds, latest, started(), trust)


@cli.command()
@_output(None, "Write the scores as JSON too.")
@_options(_settings, _out_of_fold)
@_of_models
def test(request: Request, **options: Any) -> None:
    """Score a model or an ensemble on labelled images, by the competition's metric among others.

    The config's `testing:` section says which; without one, the run's validation images are scored.
    """
    from sever import scoring

    scoring.test(request, **options)


@cli.command()
@_output("tuned.yml", "The values, for --settings of test and predict.")
@_out_of_fold
@_of_models
def tune(request: Request, **options: Any) -> None:
    """Choose thresholds and minimum areas on the models' validation images."""
    from sever import scoring

    scoring.tune(request, **options)


@cli.command()
@_output("submission.csv", "The submission.")
@click.option(
    "--sample-submission",
    type=_FILE,
    metavar="CSV",
    help="Its images, their order and its columns are what is written.",
)
@click.option(
    "--overlays",
    type=_FILE,
    metavar="DIR",
    help="Draw each sheet with its truth, where known, and its prediction.",
)
@click.option("--one-at-a-time", is_flag=True, help="Hold one model in memory instead of all.")
@_options(_images, _settings)
@_of_models
def predict(request: Request, **options: Any) -> None:
    """Write a submission for a folder of images."""
    from sever import predicting

    predicting.predict(request, **options)


def _share(name: str, default: float, help_text: str) -> Any:
    return click.option(
        name, type=click.FloatRange(0, 1), default=default, show_default=True, metavar="SHARE", help=help_text
    )


@cli.command()
@_output("pseudo.csv", "The labels.")
@_share("--agreement", 0.8, "Dice that each model's mask has at least with that of all.")
@_share("--sure", 0.8, "Probability from which a pixel of a mask is sure.")
@_share("--sure-share", 0.9, "Share of a mask's pixels, without its edge, that must be sure.")
@click.option(
    "--edge",
    type=click.IntRange(min=0),
    default=3,
    show_default=True,
    metavar="PX",
    help="Width of a mask's edge.",
)
@_share("--absent", 0.5, "Probability that no pixel of a class without a mask may reach.")
@_options(_images, _settings)
@_of_models
def pseudo(request: Request, output: Path, images: Path | None, **rules: float) -> None:
    """Write pseudo-labels: masks of unlabelled images on which all models are sure."""
    from sever import predicting

    predicting.pseudo(request, output, images, rules)


@cli.command()
@click.argument("submission", type=_FILE, metavar="SUBMISSION")
@click.option("--sample-submission", type=_FILE, metavar="CSV", help="Its images and classes must be there.")
@click.option("-i", "--images", type=_FILE, metavar="DIR", help="The images, for their names and sizes.")
@click.option(
    "--size",
    type=(click.IntRange(min=1), click.IntRange(min=1)),
    metavar="HEIGHT WIDTH",
    help="Of images that are not in DIR, in pixels.  [default: 256 1600]",
)
@click.option("--classes", type=click.IntRange(min=1), metavar="N", help="How many there are.")
@click.option(
    "--reference",
    type=_FILE,
    metavar="CSV",
    help="A training CSV or a submission, to compare how often each class occurs.",
)
@click.option(
    "--reference-images", type=_FILE, metavar="DIR", help="The images of the reference, for their number."
)
@click.option("--against", type=_FILE, metavar="CSV", help="Another submission, compared mask by mask.")
@click.option("--json", "output", type=_FILE, metavar="FILE", help="Write the report as JSON too.")
@_debug
@click.pass_context
def check(ctx: click.Context, submission: Path, **options: Any) -> None:
    """Check a submission file before it is sent; the exit status is 2 where it would be rejected."""
    from sever import reviewing

    if not reviewing.check(submission, **options):
        ctx.exit(_USERS_MISTAKE)


@cli.command()
@click.option(
    "-c",
    "--config",
    type=_FILE,
    required=True,
    metavar="FILE",
    help="The experiment, for its data_loader, testing and predict.images.",
)
@click.option("--json", "output", type=_FILE, metavar="FILE", help="Write all faults as JSON.")
@_options(_device, _set, _debug)
@click.pass_context
def verify(
    ctx: click.Context, config: Path, overrides: tuple[str, ...], output: Path | None, device: str
) -> None:
    """Check all data of a config before work; the exit status is 2 where training would fail."""
    from sever import verifying

    if not verifying.verify(config, overrides, output, device):
        ctx.exit(_USERS_MISTAKE)


@cli.command()
@click.option(
    "-r",
    "--resume",
    "checkpoints",
    type=_FILE,
    multiple=True,
    required=True,
    metavar="CKPT|DIR",
    help="A checkpoint, or the folder of a run: all its checkpoint_epoch_*.pth. Repeatable.",
)
@click.option(
    "--best", type=click.IntRange(min=1), metavar="K", help="Take the K best of them by training.monitor."
)
@click.option(
    "-o",
    "--output",
    type=_FILE,
    metavar="FILE.pth",
    help="The mean. Default: model_average.pth beside the first checkpoint.",
)
@click.option(
    "--recompute-batch-norm",
    is_flag=True,
    help="Take BatchNorm's statistics from an epoch of the training images instead of averaging them.",
)
@_options(_device, _set, _trust, _debug)
def average(
    checkpoints: tuple[Path, ...],
    best: int | None,
    output: Path | None,
    recompute_batch_norm: bool,
    device: str,
    overrides: tuple[str, ...],
    trust: bool,
) -> None:
    """Average the weights of checkpoints, e.g. of a run's best epochs."""
    if overrides and not recompute_batch_norm:
        raise click.UsageError("-s is for the data of --recompute-batch-norm, which is not given")
    from sever import averaging

    averaging.average(checkpoints, best, output, recompute_batch_norm, device, overrides, trust)


@cli.command()
@click.argument("folder", type=_FILE, metavar="DIR")
@click.option("-n", "n", type=click.IntRange(min=1), default=48, show_default=True, help="Sheets.")
@click.option("--seed", type=click.IntRange(min=0), default=1234, show_default=True)
@click.option(
    "--layout",
    type=click.Choice(["today", "2019"]),
    default="today",
    show_default=True,
    help="Columns of the CSV files: ImageId,ClassId,… or ImageId_ClassId,…",
)
@click.option(
    "--size",
    type=(click.IntRange(min=16), click.IntRange(min=16)),
    default=(256, 1600),
    show_default=True,
    metavar="HEIGHT WIDTH",
    help="Of a sheet, in pixels.",
)
@_debug
def synth(folder: Path, n: int, seed: int, layout: str, size: tuple[int, int]) -> None:
    """Draw a small steel data set in the Severstal layout."""
    from sever.data_loader.synth import draw_dataset

    for path in draw_dataset(folder, n, seed, layout, size):
        click.echo(path)
