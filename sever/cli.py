"""The `sever` command: what each of its commands takes."""

import time
from pathlib import Path
from typing import Any

import click

from sever import __version__
from sever.config.request import Request
from sever.options import (
    FILE,
    check_files,
    debug_option,
    device_option,
    images_option,
    model_options,
    option,
    options,
    out_of_fold_option,
    output_option,
    process_per_device,
    set_option,
    settings_option,
    share_option,
    trust_option,
)
from sever.run_command import CommandGroup
from sever.utils.errors import SeverError


@click.group(cls=CommandGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="sever")
@debug_option
def cli() -> None:
    """From steel images and a YAML file to the best possible submission."""


@cli.command()
@option("-c --config FILE", "The experiment. Repeatable: each is trained in turn.", "configs", multiple=True)
@option(
    "-r --resume CKPT",
    "Resume this checkpoint in its own run, or under -c FILE start a new run from it. `-r auto` resumes "
    "the latest run of -c FILE, or starts its first one.",
    "checkpoint",
)
@option("--dry-run", "Check everything and print the plan; train nothing.")
@option("--all-folds", "Train once for each of data_loader.args.folds.")
@option("--strict-data", "With -r: refuse to resume on other images or masks than the run began with.")
@option(
    "--profile N",
    "Write a profile of N steps, for TensorBoard.",
    "profile_steps",
    type=click.IntRange(min=0),
    default=0,
)
@options(device_option, set_option, trust_option, debug_option)
def train(
    configs: tuple[Path, ...],
    checkpoint: Path | None,
    dry_run: bool,
    all_folds: bool,
    strict_data: bool,
    profile_steps: int,
    device: str,
    overrides: tuple[str, ...],
    trust: bool,
) -> None:
    """Train experiments, or continue a run."""
    if not configs and not checkpoint:
        raise click.UsageError("give -c FILE to start a run, or -r CKPT to continue one")
    latest = checkpoint == Path("auto")
    if latest and not configs:
        raise click.UsageError("-r auto needs -c FILE, whose latest run it resumes")
    if checkpoint and not latest and len(configs) > 1:
        raise click.UsageError("-r CKPT goes with one -c FILE at most")
    if checkpoint and not latest and all_folds:
        raise click.UsageError("--all-folds starts new runs, and does not go with -r CKPT")
    if strict_data and (not checkpoint or (configs and not latest)):
        raise click.UsageError("--strict-data is for runs that are resumed: give -r CKPT alone, or -r auto")
    if not dry_run:
        process_per_device(device)
    first = None if latest else checkpoint
    check_files(configs, overrides, [first] if first else [])
    from sever.commands import train as command

    command.train(
        configs,
        first,
        device,
        overrides,
        dry_run,
        all_folds,
        latest,
        started=time.monotonic(),
        trust=trust,
        strict_data=strict_data,
        profile_steps=profile_steps,
    )


@cli.command()
@option("-o --output FILE.json", "Write the scores as JSON too.")
@options(settings_option, out_of_fold_option)
@model_options
def test(request: Request, **given: Any) -> None:
    """Score a model or an ensemble on labelled images, by the competition's metric among others.

    The config's `testing:` section says which; without one, the run's validation images are scored.
    """
    from sever.commands import test as command

    command.test(request, **given)


@cli.command()
@output_option("tuned.yml", "The values, for --settings of test and predict.")
@out_of_fold_option
@model_options
def tune(request: Request, **given: Any) -> None:
    """Choose thresholds and minimum areas on the models' validation images."""
    from sever.commands import tune as command

    command.tune(request, **given)


@cli.command()
@option(
    "-o --output FILE.csv",
    "The submission. Default: submission.csv, unless --masks, --probabilities, --defects or --coco is given.",
)
@option("--sample-submission CSV", "Its images, their order and its columns are what is written.")
@option("--overlays DIR", "Draw each sheet with its truth, where known, and its prediction.")
@option("--masks DIR", "Write masks as PNGs: 0, or the number of a pixel's class.")
@option("--probabilities DIR", "Write probabilities (class, row, column) as NumPy files.")
@option(
    "--probability-type",
    "float16, or uint8 for the probability times 255.",
    type=click.Choice(["float16", "uint8"]),
    default="float16",
)
@option("--defects FILE.csv|.json", "Write a table of the defects: class, box, area, length, width, angle.")
@option("--coco FILE.json", "Write the defects in the format of COCO.")
@option("--skip-existing", "Leave out images that have their files already.")
@option("--one-at-a-time", "Hold one model in memory instead of all.")
@options(images_option, settings_option)
@model_options
def predict(request: Request, **given: Any) -> None:
    """Write what is found on images: a submission, masks, probabilities, tables, pictures."""
    from sever.commands import predict as command

    command.predict(request, **given)


@cli.command()
@output_option("pseudo.csv", "The labels.")
@share_option("--agreement", 0.8, "Dice that each model's mask has at least with that of all.")
@share_option("--sure", 0.8, "Probability from which a pixel of a mask is sure.")
@share_option("--sure-share", 0.9, "Share of a mask's pixels, without its edge, that must be sure.")
@option("--edge PX", "Width of a mask's edge.", type=click.IntRange(min=0), default=3)
@share_option("--absent", 0.5, "Probability that no pixel of a class without a mask may reach.")
@options(images_option, settings_option)
@model_options
def pseudo(request: Request, **given: Any) -> None:
    """Write pseudo-labels: masks of unlabelled images on which all models are sure."""
    from sever.commands import pseudo as command

    command.pseudo(request, **given)


@cli.command()
@click.argument("submission", type=FILE, metavar="SUBMISSION")
@option("--sample-submission CSV", "Its images and classes must be there.")
@option("-i --images DIR", "The images, for their names and sizes.")
@option(
    "--size HEIGHT WIDTH",
    "Size of images that are not in DIR, in pixels.  [default: 256 1600]",
    type=(click.IntRange(min=1), click.IntRange(min=1)),
)
@option("--classes N", "Number of classes.", type=click.IntRange(min=1))
@option("--reference CSV", "A training CSV or a submission, to compare how often each class occurs.")
@option("--reference-images DIR", "The images of the reference, for their number.")
@option("--against CSV", "Another submission, compared mask by mask.")
@option("--json FILE.json", "Write the report as JSON too.", "output")
@debug_option
@click.pass_context
def check(ctx: click.Context, submission: Path, **given: Any) -> None:
    """Check a submission file before it is sent; the exit status is 2 where it would be rejected."""
    from sever.commands import check as command

    if not command.check(submission, **given):
        ctx.exit(SeverError.status)


@cli.command()
@option("-c --config FILE", "The experiment, for its data_loader, testing and predict.images.", required=True)
@option("--json FILE.json", "Write all faults as JSON.", "output")
@options(device_option, set_option, debug_option)
@click.pass_context
def verify(
    ctx: click.Context, config: Path, overrides: tuple[str, ...], output: Path | None, device: str
) -> None:
    """Check all data of a config before work; the exit status is 2 where training would fail."""
    process_per_device(device)
    check_files([config], overrides)
    from sever.commands import verify as command

    if not command.verify(config, overrides, output, device):
        ctx.exit(SeverError.status)


@cli.command()
@option(
    "-r --resume CKPT|DIR",
    "A checkpoint, or the folder of a run: all its checkpoint_epoch_*.pth. Repeatable.",
    "checkpoints",
    multiple=True,
    required=True,
)
@option("--best K", "Take the K best of them by training.monitor.", type=click.IntRange(min=1))
@option("-o --output FILE.pth", "The mean. Default: model_average.pth beside the first checkpoint.")
@option(
    "--recompute-batch-norm",
    "Take BatchNorm's statistics from an epoch of the training images instead of averaging them.",
)
@options(device_option, set_option, trust_option, debug_option)
def average(**given: Any) -> None:
    """Average the weights of checkpoints, e.g. of a run's best epochs."""
    if given["overrides"] and not given["recompute_batch_norm"]:
        raise click.UsageError("-s is for the data of --recompute-batch-norm, which is not given")
    from sever.commands import average as command

    command.average(**given)


@cli.command()
@option("-c --config FILE", "The experiment.", required=True)
@option("--seconds S", "How long each setting is measured.", type=click.FloatRange(min=0), default=5.0)
@option("--find-batch-size", "Find the largest batch that fits into a GPU's memory too.")
@options(device_option, set_option, debug_option)
def benchmark(
    config: Path, seconds: float, find_batch_size: bool, device: str, overrides: tuple[str, ...]
) -> None:
    """Measure how fast this machine reads and trains, and name the settings that make it faster."""
    check_files([config], overrides)
    from sever.commands import benchmark as command

    command.benchmark(config, device, overrides, seconds, find_batch_size)


@cli.command()
@option("-c --config FILE", "The experiment, for its cache_dir or save_dir.", required=True)
@option("--remove", "Remove them.")
@options(set_option, debug_option)
def cache(config: Path, remove: bool, overrides: tuple[str, ...]) -> None:
    """List the decoded images that data_loader.args.cache: disk has left."""
    from sever.commands import cache as command

    command.cache(config, overrides, remove)


@cli.command()
@click.argument("folder", type=FILE, metavar="DIR")
@option("-n", "Number of sheets.", type=click.IntRange(min=1), default=48)
@option("--seed", "Seed of all that is random.", type=click.IntRange(min=0), default=1234)
@option(
    "--layout",
    "Columns of the CSV files: ImageId,ClassId,… or ImageId_ClassId,…",
    type=click.Choice(["today", "2019"]),
    default="today",
)
@option(
    "--size HEIGHT WIDTH",
    "Size of a sheet, in pixels.",
    type=(click.IntRange(min=16), click.IntRange(min=16)),
    default=(256, 1600),
)
@debug_option
def synth(**given: Any) -> None:
    """Draw a small steel data set in the Severstal layout."""
    from sever.commands import synth as command

    command.synth(**given)
