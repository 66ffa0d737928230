"""Runs of the command line that tests share: drawn sheets of 64 x 128 pixels and a very small model."""

import re
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from sever.cli import cli
from sever.utils.yaml_parser import dump_yaml

ROOT = Path(__file__).resolve().parents[2]
SIZE = (64, 128)


def sever(*args: str | Path) -> Result:
    """Run a command in this process; what it raises but a user's mistake comes through."""
    result = CliRunner().invoke(cli, [str(arg) for arg in args])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def done(*args: str | Path) -> str:
    """Run a command that must end well, and return what it printed."""
    result = sever(*args)
    assert result.exit_code == 0, result.output
    return result.output


def mistake(*args: str | Path) -> str:
    """Run a command that must end as a user's mistake, and return its message."""
    result = sever(*args)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    return result.stderr


def synthetic_sheets(folder: Path) -> Path:
    """Draw 16 training sheets, and test sheets with `pseudo.csv`, a mask of class 1 for each."""
    done("synth", folder, "-n", "16", "--size", *map(str, SIZE))
    rows = [f"{path.name},1,1 50" for path in sorted((folder / "test_images").iterdir())]
    (folder / "pseudo.csv").write_text("\n".join(["ImageId,ClassId,EncodedPixels", *rows]) + "\n")
    return folder


def steel_config(data_dir: Path, save_dir: Path) -> dict[str, Any]:
    """An experiment of a second or two."""
    return {
        "name": "small",
        "save_dir": str(save_dir),
        "seed": 3,
        "arch": {
            "type": "Unet",
            "args": {
                "encoder_name": "tu-mobilenetv3_small_050",
                "encoder_weights": None,
                "in_channels": "r",
                "classes": 4,
                "encoder_depth": 3,
                "decoder_channels": [16, 8, 4],
            },
        },
        "augmentation": {"type": "HeavyCropTransforms", "args": {"height": 48, "width": 64}},
        "data_loader": {
            "type": "SteelSegDataLoader",
            "args": {"data_dir": str(data_dir), "batch_size": 4, "num_workers": 0, "validation_split": 0.25},
        },
        "loss": {"type": "BCEDiceLoss", "args": {"label_smoothing": 1e-6}},
        "metrics": ["dice", "iou"],
        "optimizer": {
            "type": "RAdam",
            "encoder": {"lr": 7e-4, "weight_decay": 3e-5},
            "decoder": {"lr": 3e-3, "weight_decay": 3e-4},
        },
        "lr_scheduler": {"type": "FlatCosineLR", "args": {"flat_epochs": 1, "anneal_epochs": 4}},
        "training": {"epochs": 2, "monitor": "max val_dice_mean", "tensorboard": False},
        "testing": {"data_dir": str(data_dir)},
    }


def write_config(path: Path, config: dict[str, Any]) -> Path:
    """Write a config file."""
    path.write_text(dump_yaml(config), encoding="utf-8")
    return path


def run_folder(output: str) -> Path:
    """The run folder that `sever train` named."""
    found = re.search(r"^run folder\s+(\S+)$", output, flags=re.MULTILINE)
    assert found, output
    return Path(found[1])
