"""The `sever` command: what each of its commands takes."""

import time
from pathlib import Path
from typing import Any

import click

from sever import __version__
from sever.command_group import CommandGroup
from sever.config.request import Request
from sever.options import (
    FILE,
    debug_option,
    device_option,
    images_option,
    of_models,
    options,
    out_of_fold_option,
    output_option,
    process_per_device,
    set_option,
    settings_option,
    share_option,
    trust_option,
)

_USERS_MISTAKE = 2


@click.group(cls=CommandGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="sever")
@debug_option
def cli() -> None:
    """From steel images and a YAML file to the best possible submission."""


@cli.command()
@click.option(
    "-c",
    "--config",
    "configs",
    type=FILE,
    multiple=True,
    metavar="FILE",
    help="The experiment. Repeatable: each is trained in turn.",
)
@click.option(
    "-r",
    "--resume",
    "checkpoint",
    type=FILE,
    metavar="CKPT",
    help="Go on from this checkpoint: in its own run, or under -c FILE in a new one. `-r auto` goes on with "
    "the latest run of -c FILE, or starts its first one.",
)
@click.option("--dry-run", is_flag=True, help="Check everything and print the plan; train nothing.")
@click.option("--all-folds", is_flag=True, help="Train once for each of data_loader.args.folds.")
@options(device_option, set_option, trust_option, debug_option)
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
    if not dry_run:
        process_per_device(device)
    from sever.commands import train as command

    first = None if latest else checkpoint
    command.train(configs, first, device, overrides, dry_run, all_folds, latest, time.monotonic(), trust)


@cli.command()
@output_option(None, "Write the scores as JSON too.")
@options(settings_option, out_of_fold_option)
@of_models
def test(request: Request, **given: Any) -> None:
    """Score a model or an ensemble on labelled images, by the competition's metric among others.

    The config's `testing:` section says which; without one, the run's validation images are scored.
    """
    from sever.commands import test as command

    command.test(request, **given)


@cli.command()
@output_option("tuned.yml", "The values, for --settings of test and predict.")
@out_of_fold_option
@of_models
def tune(request: Request, **given: Any) -> None:
    """Choose thresholds and minimum areas on the models' validation images."""
    from sever.commands import tune as command

    command.tune(request, **given)


@cli.command()
@output_option("submission.csv", "The submission.")
@click.option(
    "--sample-submission",
    type=FILE,
    metavar="CSV",
    help="Its images, their order and its columns are what is written.",
)
@click.option(
    "--overlays",
    type=FILE,
    metavar="DIR",
    help="Draw each sheet with its truth, where known, and its prediction.",
)
@click.option("--one-at-a-time", is_flag=True, help="Hold one model in memory instead of all.")
@options(images_option, settings_option)
@of_models
def predict(request: Request, **given: Any) -> None:
    """Write a submission for a folder of images."""
    from sever.commands import predict as command

    command.predict(request, **given)


@cli.command()
@output_option("pseudo.csv", "The labels.")
@share_option("--agreement", 0.8, "Dice that each model's mask has at least with that of all.")
@share_option("--sure", 0.8, "Probability from which a pixel of a mask is sure.")
@share_option("--sure-share", 0.9, "Share of a mask's pixels, without its edge, that must be sure.")
@click.option(
    "--edge",
    type=click.IntRange(min=0),
    default=3,
    show_default=True,
    metavar="PX",
    help="Width of a mask's edge.",
)
@share_option("--absent", 0.5, "Probability that no pixel of a class without a mask may reach.")
@options(images_option, settings_option)
@of_models
def pseudo(request: Request, output: Path, images: Path | None, **rules: float) -> None:
    """Write pseudo-labels: masks of unlabelled images on which all models are sure."""
    from sever.commands import pseudo as command

    command.pseudo(request, output, images, rules)


@cli.command()
@click.argument("submission", type=FILE, metavar="SUBMISSION")
@click.option("--sample-submission", type=FILE, metavar="CSV", help="Its images and classes must be there.")
@click.option("-i", "--images", type=FILE, metavar="DIR", help="The images, for their names and sizes.")
@click.option(
    "--size",
    type=(click.IntRange(min=1), click.IntRange(min=1)),
    metavar="HEIGHT WIDTH",
    help="Of images that are not in DIR, in pixels.  [default: 256 1600]",
)
@click.option("--classes", type=click.IntRange(min=1), metavar="N", help="How many there are.")
@click.option(
    "--reference",
    type=FILE,
    metavar="CSV",
    help="A training CSV or a submission, to compare how often each class occurs.",
)
@click.option(
    "--reference-images", type=FILE, metavar="DIR", help="The images of the reference, for their number."
)
@click.option("--against", type=FILE, metavar="CSV", help="Another submission, compared mask by mask.")
@click.option("--json", "output", type=FILE, metavar="FILE", help="Write the report as JSON too.")
@debug_option
@click.pass_context
def check(ctx: click.Context, submission: Path, **given: Any) -> None:
    """Check a submission file before it is sent; the exit status is 2 where it would be rejected."""
    from sever.commands import check as command

    if not command.check(submission, **given):
        ctx.exit(_USERS_MISTAKE)


@cli.command()
@click.option(
    "-c",
    "--config",
    type=FILE,
    required=True,
    metavar="FILE",
    help="The experiment, for its data_loader, testing and predict.images.",
)
@click.option("--json", "output", type=FILE, metavar="FILE", help="Write all faults as JSON.")
@options(device_option, set_option, debug_option)
@click.pass_context
def verify(
    ctx: click.Context, config: Path, overrides: tuple[str, ...], output: Path | None, device: str
) -> None:
    """Check all data of a config before work; the exit status is 2 where training would fail."""
    process_per_device(device)
    from sever.commands import verify as command

    if not command.verify(config, overrides, output, device):
        ctx.exit(_USERS_MISTAKE)


@cli.command()
@click.option(
    "-r",
    "--resume",
    "checkpoints",
    type=FILE,
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
    type=FILE,
    metavar="FILE.pth",
    help="The mean. Default: model_average.pth beside the first checkpoint.",
)
@click.option(
    "--recompute-batch-norm",
    is_flag=True,
    help="Take BatchNorm's statistics from an epoch of the training images instead of averaging them.",
)
@options(device_option, set_option, trust_option, debug_option)
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
    from sever.commands import average as command

    command.average(checkpoints, best, output, recompute_batch_norm, device, overrides, trust)


@cli.command()
@click.argument("folder", type=FILE, metavar="DIR")
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
@debug_option
def synth(folder: Path, n: int, seed: int, layout: str, size: tuple[int, int]) -> None:
    """Draw a small steel data set in the Severstal layout."""
    from sever.commands import synth as command

    command.synth(folder, n, seed, layout, size)
