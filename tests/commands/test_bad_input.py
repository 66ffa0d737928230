"""Bad input of every kind through the command line, each one message that names the place and the cure.

`CASES` must fail: exit status 2, no traceback, nothing left behind. `ODD` looks wrong and must work.
"""

import io
import os
import re
import shutil
import socket
import struct
import sys
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from runs import done, mistake, run_folder, steel_config, write_config
from sheets import OF_2019, TODAY, draw_data, draw_images, numbered

from sever.utils.yaml_parser import dump_yaml

TRAIN = ("train", "-c", "c.yml", "--dry-run")
TEST = ("test", "-r", "model.pth", "-d", "cpu")
PREDICT = ("predict", "-r", "model.pth", "-d", "cpu")
MARKER = "code-ran"
NODE = "expected a name, or 'type' and 'args'"


@dataclass(frozen=True)
class Case:
    """What is done to a folder with good input, the command, and words that its message must hold."""

    words: Sequence[str]
    args: Sequence[str] = TRAIN
    spoil: Callable[[], object] = lambda: None


# ----------------------------------------------------------------------------------------- configs


def config(*words, text=None, without=None, **sections):
    """A case whose config is another text, or has other sections."""

    def spoil():
        values = steel_config(Path("data"), Path("saved")) | sections
        values.pop(without, None)
        content = dump_yaml(values) if text is None else text
        Path("c.yml").write_bytes(content if isinstance(content, bytes) else content.encode())

    return Case(words, spoil=spoil)


def added(text, *words):
    """A case whose config has some lines more."""

    def spoil():
        with Path("c.yml").open("a", encoding="utf-8") as file:
            file.write(text)

    return Case(words, spoil=spoil)


def option(override, *words):
    """A case of an override."""
    return Case(words, (*TRAIN, "-s", override))


def bomb(first, each):
    """Nine lines of aliases, of which each stands for nine of the line before."""
    lines = [f"a0: &a0 {first}"]
    lines += [f"a{n}: &a{n} {each % ', '.join([f'*a{n - 1}'] * 9)}" for n in range(1, 10)]
    return "\n".join(lines) + "\n"


def pipe(name, *words, args=TRAIN):
    """A case of a named pipe, which would be waited for, in the place of a file."""

    def spoil():
        Path(name).unlink(missing_ok=True)
        os.mkfifo(name)

    return Case([f"{name}: ", "is a named pipe", *words], args, spoil)


def huge(name, *words, args=TRAIN):
    """A case of a file of 2 GB that takes no place on the disk."""

    def spoil():
        with Path(name).open("wb") as file:
            file.truncate(2**31)

    return Case([f"{name}: ", "has more than", *words], args, spoil)


def listening():
    """A socket in the place of c.yml."""
    Path("c.yml").unlink()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("c.yml")


def loop():
    Path("c.yml").write_text("extends: base.yml\n")
    Path("base.yml").write_text("extends: c.yml\n")


SECTIONS = {
    "no arch": config(f"c.yml: 'arch' is missing: {NODE}", without="arch"),
    "no data_loader": config("c.yml: 'data_loader' is missing", without="data_loader"),
    "no loss": config("c.yml: 'loss' is missing", without="loss"),
    "no optimizer": config("c.yml: 'optimizer' is missing", without="optimizer"),
    "no training": config("c.yml: 'training' is missing: expected keys such as epochs", without="training"),
    "arch is a number": config(f"c.yml: arch: {NODE}, received 5", arch=5),
    "augmentation is a list": config(f"c.yml: augmentation: {NODE}, received [1]", augmentation=[1]),
    "data_loader is nothing": config(f"c.yml: data_loader: {NODE}", data_loader=None),
    "loss is true": config(f"c.yml: loss: {NODE}, received True", loss=True),
    "metrics is a name": config("c.yml: metrics: expected a valid list", "'dice'", metrics="dice"),
    "a metric is a number": config(f"c.yml: metrics.1: {NODE}, received 7", metrics=["dice", 7]),
    "optimizer is a list": config(f"c.yml: optimizer: {NODE}", optimizer=[]),
    "lr_scheduler is a number": config(f"c.yml: lr_scheduler: {NODE}", lr_scheduler=0.1),
    "training is a number": config(
        "c.yml: training: expected a valid mapping with keys such as epochs, early_stop", training=5
    ),
    "testing is a text": config("c.yml: testing: expected a valid mapping", "data_dir", testing="test.csv"),
    "predict is a list": config(
        "c.yml: predict: expected a valid mapping with keys such as images, threshold", predict=[0.5]
    ),
    "trainer is a number": config(f"c.yml: trainer: {NODE}", trainer=1),
    "args is a list": config(
        "c.yml: loss.args: expected a valid mapping", loss={"type": "BCELoss", "args": [1]}
    ),
    "type is a number": config("c.yml: loss.type: expected a valid string", loss={"type": 3}),
    "no type": config("c.yml: 'loss.type' is missing", loss={"args": {}}),
    "a key is a number": added(
        "7: x\n", "c.yml: 7: expected a text as the key, received 7; put quotes around it"
    ),
    "a key of args is a number": config(
        "c.yml: loss.args.7: expected a text as the key", loss={"type": "BCELoss", "args": {7: 1}}
    ),
    "seed is a text": config("c.yml: seed: expected a valid integer", "'many'", seed="many"),
    "seed of 400 digits": config("c.yml: seed: expected", "9223372036854775808", seed=int("9" * 400)),
    "two wrong rates": config(
        "c.yml: optimizer.encoder.lr",
        "received '7e-5 '",
        optimizer={"type": "RAdam", "encoder": {"lr": "7e-5 "}, "decoder": {"lr": 1e-3}},
    ),
    "sections misspelt": config(
        "unknown key 'optimiser'. Did you mean 'optimizer'?",
        "unknown key 'dataloader'. Did you mean 'data_loader'?",
        without="optimizer",
        optimiser="RAdam",
        dataloader={},
    ),
    "a section too many in a section": config(
        "c.yml: loss: unknown key 'weight'", "Known: type, args", loss={"type": "BCELoss", "weight": 1}
    ),
}
FILES = {
    "empty file": config("c.yml: expected sections such as 'arch:', received an empty file", text=b""),
    "comment alone": config("c.yml: expected sections", "an empty file", text="# to be done\n"),
    "list": config("c.yml: expected sections", "received a list", text="- arch\n- loss\n"),
    "text": config("c.yml: expected sections", "received a str", text="arch\n"),
    "tabs": config("c.yml, line 2: not valid YAML", "indent with spaces", text="arch:\n\ttype: Unet\n"),
    "not closed": config("c.yml, line 2: not valid YAML", text="arch: {type: Unet\n"),
    "template": config("c.yml, line 1: not valid YAML", text="name: {{ name }}\n"),
    "latin-1": config(
        "c.yml: not a text file in UTF-8", "save it as UTF-8", text="name: Blöcke\n".encode("latin-1")
    ),
    "UTF-16": config(
        "c.yml: not a text file in UTF-8", "save it as UTF-8", text="name: a\n".encode("utf-16")
    ),
    "a picture": config(
        "c.yml: not a text file in UTF-8", "save it as UTF-8", text=b"\x89PNG\r\n\x1a\n\x00\x00"
    ),
    "NUL": config("c.yml: not a text file in UTF-8: line 1 holds a NUL byte", text=b"name: a\x00b\n"),
    "a key twice": added("seed: 1\n", "c.yml, line ", "the key 'seed' is given twice; keep one"),
    "1e400": added("own: 1e400\n", "c.yml, line ", "the number 1e400 is too large"),
    "another program's tag": added("own: !!python/object/apply:os.system [x]\n", "line ", "without a tag"),
    "a date": added("own: !!timestamp 2019-10-24\n", "line ", "write the plain value, without a tag"),
    "half a character": added('own: "\\ud800"\n', "c.yml, line ", "half a character", "take it out"),
    "no such character": added('own: "\\U00110000"\n', "c.yml: not valid YAML: an escape is no character"),
    "alias of nothing": added("own: *nothing\n", "c.yml, line ", "undefined alias", "put quotes"),
    "alias of itself": added("own: &own [*own]\n", "c.yml, line ", "an alias leads to what it is in"),
    "alias bomb": added(bomb("[x, x]", "[%s]"), "c.yml, line ", "stand for more than 100,000 values"),
    "bomb of merged keys": added(bomb("{x: 1}", "{<<: [%s]}"), "line ", "stand for more than 100,000"),
    "very deep": added(f"own: {'[' * 300}{']' * 300}\n", "nested deeper than 50 levels"),
    "two documents": added("---\nname: two\n", "c.yml, line ", "another document"),
    "extends a loop": Case(
        ["extends itself", "c.yml", "base.yml", "take one of these extends out"], spoil=loop
    ),
    "extends nothing": added("extends: gone.yml\n", "c.yml: extends: gone.yml: cannot be read: No such file"),
    "extends a list": added("extends: [a.yml]\n", "c.yml: extends: expected the path", "['a.yml']"),
    "extends a folder": added(
        "extends: data\n", "c.yml: extends: data: cannot be read: is a folder; give the name of a YAML file"
    ),
    "no file": Case(
        ["none.yml: cannot be read: No such file", "Beside it: c.yml"], ("train", "-c", "none.yml")
    ),
    "a folder": Case(
        ["data: cannot be read: is a folder; give the name of a YAML file"], ("train", "-c", "data")
    ),
    "a pipe": pipe("c.yml", "c.yml: cannot be read: is a named pipe; give the name of a YAML file"),
    "a socket": Case(["c.yml: cannot be read: is a socket"], spoil=listening),
    "a device": Case(["/dev/zero: cannot be read: is a device"], ("train", "-c", "/dev/zero")),
    "2 GB": huge("c.yml", "1,048,576 bytes"),
    "extends a device": added("extends: /dev/zero\n", "c.yml: extends: /dev/zero: ", "is a device"),
    "logging.yml: a pipe": pipe("logging.yml", "give the name of a YAML file"),
    "logging.yml: latin-1": Case(
        ["logging.yml: not a text file in UTF-8: line 2 holds the byte 0xf6; save it as UTF-8"],
        spoil=lambda: Path("logging.yml").write_bytes("version: 1\n# Blöcke\n".encode("latin-1")),
    ),
    "logging.yml: tabs": Case(
        ["logging.yml, line 1: not valid YAML"],
        spoil=lambda: Path("logging.yml").write_text("version:\t[\n"),
    ),
    "logging.yml: a file in no folder": Case(
        ["logging.yml: /none/run.log: there is no folder /none that you may write to"],
        spoil=lambda: Path("logging.yml").write_text(
            "version: 1\nhandlers: {file: {class: logging.FileHandler, filename: /none/run.log}}\n"
        ),
    ),
    "logging.yml: no such handler": Case(
        ["logging.yml: not a logging config: Unable to configure handler 'console'"],
        spoil=lambda: Path("logging.yml").write_text(
            "version: 1\nhandlers: {console: {class: logging.NoHandler}}\n"
        ),
    ),
}
TOO_MUCH = {
    **dict.fromkeys(
        [f"training.{key}" for key in ("epochs", "early_stop", "accumulate", "keep_best")], 10**12
    ),
    **dict.fromkeys([f"training.{key}" for key in ("save_period", "keep_last", "skip_limit")], 10**30),
    "optimizer.lookahead.k": 10**30,
    "lr_scheduler.warmup.length": 10**12,
    "lr_scheduler.args.flat_epochs": 10**30,
    "data_loader.args.batch_size": 10**9,
    "data_loader.args.validation_batch_size": 10**9,
    "data_loader.args.num_workers": 2000,
    "data_loader.args.folds": 10**9,
    "testing.batch_size": 10**9,
    "augmentation.args.height": 10**9,
    "augmentation.args.width": 20_000,
    "predict.dilate": 3000,
    "predict.min_area": 10**30,
    "predict.min_component": 10**30,
    "predict.fill_holes": 10**30,
    "predict.gate_factor": 1e300,
    "predict.batch_size": 10**9,
    "predict.num_workers": 10**9,
}
OPTIONS = {
    case.args[-1]: case
    for case in [
        option("traning.epochs=3", "unknown key 'traning'", "Did you mean 'training'?"),
        option("data_dir=x", "the config has no key 'data_dir'", "Did you mean 'data_loader.args.data_dir'?"),
        option("training.epoch=3", "training: unknown key 'epoch'", "Did you mean 'epochs'?"),
        option("training.epochs=many", "training.epochs: expected a valid integer", "'many'"),
        option("training.epochs=[3]", "training.epochs: expected a valid integer, received [3]"),
        option("training.epochs=0", "training.epochs", "greater than or equal to 1"),
        option("training.monitor=best val_loss", "training.monitor", "'max val_dice_mean'"),
        option("training.monitor=max val_dice_men", "'val_dice_men'", "Did you mean 'val_dice_mean'?"),
        option("training.verbose=7", "training.verbose", "7"),
        *(
            option(f"{key}={value}", f"{key}: expected less than or equal to", f"received {value}")
            for key, value in TOO_MUCH.items()
        ),
        option("training.clip_grad_norm=.inf", "training.clip_grad_norm: expected a finite number"),
        option("training.max_time=soon", "training.max_time", "such as 8h50m"),
        option("arch.type=Unett", "arch: 'Unett' is not a known arch", "Did you mean 'Unet'?"),
        option(
            "arch.args.encodername=resnet18", "does not take 'encodername'", "Did you mean 'encoder_name'?"
        ),
        option("arch.args.encoder_name=resnet81", "not a known encoder", "Did you mean 'resnet18'?"),
        option("arch.args.encoder_name=tu-nonet", "'tu-nonet' is not a known encoder"),
        option("arch.args.encoder_name=tu-hf-hub:me/net", "'tu-hf-hub:me/net' is not a known encoder"),
        option("arch.args.encoder_weights=imagnet", "'imagnet' is not known", "Did you mean 'imagenet'?"),
        option("arch.args.encoder_weights=lite0.safetensors", "'lite0.safetensors' is no file"),
        option("arch.args.in_channels=x", "in_channels", "letters out of r, g, b", "'x'"),
        option("arch.args.in_channels=0", "in_channels", "letters out of r, g, b", "1 or 3"),
        option("arch.args.classes=0", "arch.args.classes: expected greater than or equal to 1"),
        option("arch.args.classes=1000000000", "arch.args.classes: expected less than or equal to 1000"),
        option("arch.args.classes=four", "arch.args.classes: expected a valid integer"),
        option("arch.args.classes=2", "CSV has classes 1 to 4, arch.args.classes is 2", "classes to 4"),
        option("arch.args.encoder_depth=9", "arch", "Unet refuses its arguments"),
        option("augmentation.type=HeavyCrop", "Did you mean 'HeavyCropTransforms'?"),
        option("augmentation.args.heigth=4", "does not take 'heigth'", "Did you mean 'height'?"),
        option("augmentation.args.std=0", "augmentation", "std must be above 0"),
        option("augmentation.args.std=.nan", "augmentation.args.std: expected a finite number, received nan"),
        option("data_loader.type=SteelDataLoader", "Did you mean 'SteelSegDataLoader'?"),
        option("data_loader.args.bach_size=4", "Did you mean 'batch_size'?"),
        option("data_loader.args.batch_size=0", "data_loader", "batch_size must be at least 1"),
        option("data_loader.args.validation_split=1.5", "validation_split must be a share in [0, 1)"),
        option("data_loader.args.classes=4", "'classes' of SteelSegDataLoader is set by the program"),
        option("data_loader.args.csv=trian.csv", "trian.csv: no such CSV", "Did you mean 'train.csv'"),
        option("data_loader.args.images=images", "images: no such folder of images", "train_images"),
        option("data_loader.args.data_dir=nowhere", "nowhere", "no such folder"),
        option("loss.type=BCEDicLoss", "'BCEDicLoss' is not a known loss", "Did you mean 'BCEDiceLoss'?"),
        option(
            "loss.type=LovaszHingeLoss",
            "c.yml: loss.args: LovaszHingeLoss does not take 'label_smoothing'. It takes: per.",
            "For its defaults give the name alone",
        ),
        option("loss.type=no_such_module.Loss", "cannot be imported"),
        option("loss.type=sever.model.combined_loss.Los", "sever.model.combined_loss has no 'Los'"),
        option("loss.args.dice_weight=-1", "loss", "at least 0"),
        option("metrics=[dcie]", "metrics: 'dcie' is not a known metric", "Did you mean 'dice'?"),
        option("metrics.9=dice", "expected a place from 0 to 1 in the list, received '9'"),
        option("optimizer.type=RAdamm", "Did you mean 'RAdam'?"),
        option("optimizer.encoder.lr=fast", "optimizer.encoder.lr", "'fast'"),
        option(
            "optimizer.encoder.lr=-1", "optimizer.encoder.lr: expected a number of at least 0, received -1"
        ),
        option("optimizer.encoder.lr=.nan", "optimizer.encoder.lr: expected a finite number, received nan"),
        option("optimizer.encoder.lr=.inf", "optimizer.encoder.lr: expected a finite number, received inf"),
        option("optimizer.encoder.lrr=1", "optimizer.encoder: unknown key 'lrr'", "Did you mean 'lr'?"),
        option("optimizer.decoder=null", "optimizer", "needs both 'encoder:' and 'decoder:'"),
        option("lr_scheduler.type=FlatCosine", "Did you mean 'FlatCosineLR'?"),
        option("lr_scheduler.args.anneal_epochs=0", "lr_scheduler.args.anneal_epochs", "equal to 1"),
        option("lr_scheduler={type: OneCycleLR, args: {max_lr: 0.1, total_steps: 1}}", "ends before"),
        option("predict.min_area=[600, 600]", "predict.min_area", "4 classes, received 2"),
        option("predict.threshold=2", "predict.threshold", "less than or equal to 1"),
        option("testing.batchsize=2", "testing", "Did you mean 'batch_size'?"),
        option("testing.shuffle=true", "testing: 'shuffle' is for training alone"),
        option("data_loader.args={data_dir: data, batch_size: 99, drop_last: true}", "make no full batch"),
        option("name=a/b", "name", "slash"),
        option("seed=-1", "seed", "greater than or equal to 0"),
        option("training.epochs.more=5", "-s training.epochs.more=5", "has no keys in it"),
        option("training", "-s training: expected KEY=VALUE"),
        option("training.epochs=[", "-s training.epochs=[", "not valid YAML"),
        option("extends=other.yml", "-s extends=other.yml", "a file says itself"),
    ]
}

# -------------------------------------------------------------------------------------------- CSVs


def csv(text, *words):
    """A case of another train.csv."""
    content = text if isinstance(text, bytes) else text.encode()
    return Case(["data/train.csv", *words], spoil=lambda: Path("data/train.csv").write_bytes(content))


def row(text, *words):
    """A case of a train.csv with one bad row, the third."""
    return csv(f"{TODAY}00.png,1,1 1\n{text}\n", "row 3", *words)


NINES = "9" * 400
CSVS = {
    "csv: empty": csv("", "not a CSV table: No columns"),
    "csv: a column twice": csv(
        "ImageId,ImageId,ClassId,EncodedPixels\n00.png,01.png,1,1 1\n",
        "has more than one column ImageId; keep one",
    ),
    "csv: a pipe": pipe("data/train.csv", "expected a CSV (keys data_dir and csv)"),
    "csv: a device": Case(
        ["/dev/zero: is a device; expected a CSV"], (*TRAIN, "-s", "data_loader.args.csv=/dev/zero")
    ),
    "csv: 2 GB": huge("data/train.csv", "1,073,741,824 bytes"),
    "csv: a long line": csv("a" * 100_000, "received aaa", "aaa …"),
    "csv: a line break in a name": row('"00\n.png",1,1 1', "image '00\\n.png' is not in"),
    "csv: header of another program": csv("image,mask\n00.png,1 1\n", "expected the columns", "image,mask"),
    "csv: no header": csv("00.png,1,1 1\n", "expected the columns ImageId,ClassId", "received 00.png,1,1 1"),
    "csv: a column too few": csv("ImageId,EncodedPixels\n00.png,1 1\n", "received ImageId,EncodedPixels"),
    "csv: semicolons": csv(
        "ImageId;ClassId;EncodedPixels\n00.png;1;1 1\n", "separated by semicolons: save it with commas"
    ),
    "csv: tabs": csv("ImageId\tClassId\tEncodedPixels\n00.png\t1\t1 1\n", "expected the columns"),
    "csv: a quote that does not close": csv(f'{TODAY}"00.png,1,1 1\n01.png,1,1 1\n', "not a CSV table"),
    "csv: a field too many": csv(f"{TODAY}00.png,1,1 1\n00.png,2,1 1,x\n", "not a CSV table", "line 3"),
    "csv: a field too many in all rows": csv(f"{TODAY}00.png,1,1 1,x\n", "more fields than its header"),
    "csv: latin-1": csv(
        "ImageId,ClassId,EncodedPixels,Größe\n".encode("latin-1"),
        "not a CSV table: line 1 holds the byte 0xf6; save it as UTF-8 ('CSV UTF-8' in Excel)",
    ),
    "csv: UTF-16": csv(TODAY.encode("utf-16"), "the byte order mark of UTF-16; save it as UTF-8"),
    "csv: a picture": csv(b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR", "not a CSV table"),
    "csv: NUL": csv(f"{TODAY}00.png,1,1\0 1\n", "line 2 holds a NUL byte", "save it as UTF-8"),
    "csv: no runs": row("00.png,2,a mask", "expected numbers separated by spaces, received 'a'"),
    "csv: floats": row("00.png,2,1.0 2.0", "received '1.0'", "write 'start length' pairs"),
    "csv: commas": row('00.png,2,"1,2"', "received '1,2'"),
    "csv: list": row("00.png,2,[1 2]", "received '[1'"),
    "csv: negative": row("00.png,2,-1 2", "received '-1'"),
    "csv: odd": row("00.png,2,1 2 3", "expected pairs 'start length', received 3 numbers", "length that is"),
    "csv: start of 0": row("00.png,2,0 2", "run '0 2' starts at 0", "count the first pixel as 1"),
    "csv: length of 0": row("00.png,2,10 0", "run '10 0' has no length", "or take the run away"),
    "csv: outside": row(
        "00.png,2,64 2", "run '64 2' leaves the image", "(8 x 8 pixels)", "this image's size"
    ),
    "csv: 20 digits": row(f"00.png,2,{10**20} 1", "run '100000000000000000000 1' leaves the image"),
    "csv: 400 digits": row(f"00.png,2,1 {NINES}", f"run '1 {'9' * 40}…' leaves the image"),
    "csv: overlap": row("00.png,2,1 5 3 5", "run '3 5' overlaps another run of the mask; join the two"),
    "csv: class 0": row("00.png,0,1 1", "expected a ClassId from 1 to 4, received '0'"),
    "csv: class 5": row("00.png,5,1 1", "from 1 to 4, received '5'; correct it, or arch.args.classes"),
    "csv: class 1.0": row("00.png,1.0,1 1", "received '1.0'"),
    "csv: class of 400 digits": row(f"00.png,{NINES},1 1", "from 1 to 4, received '999"),
    "csv: no class": row("00.png,,1 1", "from 1 to 4, received ''"),
    "csv: twice": row("00.png,1,2 1", "'00.png' has class 1 in an earlier row already (row 2); join"),
    "csv: no such image": row("0O.png,1,1 1", "'0O.png' is not in", "Did you mean", "or remove"),
    "csv: no name": row(",1,1 1", "expected the file name of an image", "received ''"),
    "csv: path": row("../train_images/00.png,1,1 1", "file name of an image", "write its name alone"),
    "csv: absolute path": row("/etc/passwd,1,1 1", "file name of an image", "received '/etc/passwd'"),
    "csv: folder": row("..,1,1 1", "expected the file name of an image", "received '..'"),
    "csv: 2019 without class": csv(f"{OF_2019}00.png,1 1\n", "row 2", "'00.png'"),
    "csv: sample submission": csv(
        "ImageId,EncodedPixels,ClassId\n" + "".join(f"0{n}.png,1 64,0\n" for n in range(8)),
        "all its 8 rows have the ClassId 0, as in a sample submission",
    ),
    "csv: of another folder": csv(
        TODAY + "".join(f"{n:06d}.jpg,1,1 1\n" for n in range(300)),
        "it names 300 images, of which none is in data/train_images",
        "the CSV of another folder",
    ),
    "csv: a folder": Case(
        ["data/train_images: is a folder; expected a CSV", "Beside it: test_images, train.csv"],
        (*TRAIN, "-s", "data_loader.args.csv=train_images"),
    ),
    "groups: a pipe": pipe(
        "data/groups.csv",
        "(keys data_dir and groups)",
        args=(*TRAIN, "-s", "data_loader.args.groups=groups.csv"),
    ),
    "groups: a column twice": Case(
        ["data/groups.csv: has more than one column GroupId"],
        (*TRAIN, "-s", "data_loader.args.groups=groups.csv"),
        lambda: Path("data/groups.csv").write_text("ImageId,GroupId,GroupId\n00.png,1,2\n"),
    ),
    "groups: header": Case(
        ["data/groups.csv: expected the columns ImageId,GroupId", "received a,b"],
        (*TRAIN, "-s", "data_loader.args.groups=groups.csv"),
        lambda: Path("data/groups.csv").write_text("a,b\n"),
    ),
    "groups: path": Case(
        ["data/groups.csv, row 2", "image '../00.png' is not in data/train_images"],
        (*TRAIN, "-s", "data_loader.args.groups=groups.csv"),
        lambda: Path("data/groups.csv").write_text("ImageId,GroupId\n../00.png,1\n"),
    ),
}

# ------------------------------------------------------------------------------------------ images

PNG = cv2.imencode(".png", np.arange(64 * 64, dtype=np.uint16).reshape(64, 64) % 251)[1].tobytes()
COPY = "Put a whole copy in its place, or remove it"
NOISE = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
JPEG = cv2.imencode(".jpg", NOISE)[1].tobytes()
DAMAGED = JPEG[:1500] + JPEG[2000:]  # decoded without a word but libjpeg's, which names no file
IS_DAMAGED = ["expected an image that can be decoded whole", COPY, "data_loader.args.damaged: warn"]
GOES_ON = ("-s", "data_loader.args.damaged=warn")


def image(content, *words, args=TRAIN, path="data/train_images/03.png"):
    """A case of another content of an image."""
    return Case([path, *words], args, lambda: Path(path).write_bytes(content))


def png_header(width, height):
    """The first bytes of a PNG that says it has so many pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return PNG[:12] + header + struct.pack(">I", zlib.crc32(header)) + PNG[33:]


def named(name, *words, args=TRAIN, folder="data/train_images"):
    """A case of an image with an odd name."""
    return Case(
        ["expected a name in UTF-8 without control characters", "Rename the file", *words],
        args,
        lambda: Path(folder, os.fsdecode(name)).write_bytes(PNG),
    )


def folder_as_image():
    Path("data/train_images/03.png").unlink()
    Path("data/train_images/03.png").mkdir()


IMAGES = {
    "image: zero bytes": image(b"", "not an image: empty (0 bytes)", COPY),
    "image: text": image(b"this is no image", "not an image, or damaged", COPY),
    "image: HTML": image(b"<!DOCTYPE html><html>404</html>", "not an image, or damaged", COPY),
    "image: cut off in its header": image(PNG[:20], COPY),
    "image: cut off in its pixels": image(
        PNG[:300], "damaged", COPY, args=PREDICT, path="data/test_images/t0.png"
    ),
    "image: a header that lies": image(
        PNG[:16] + (2**31 - 1).to_bytes(4, "big") * 2 + PNG[24:], "not an image, or damaged", COPY
    ),
    "image: damaged in its middle": image(DAMAGED, *IS_DAMAGED),
    "image: damaged, in test": image(DAMAGED, *IS_DAMAGED, args=TEST),
    "image: damaged, in tune": image(DAMAGED, *IS_DAMAGED, args=("tune", "-r", "model.pth", "-d", "cpu")),
    "image: damaged, in predict": image(DAMAGED, *IS_DAMAGED, args=PREDICT, path="data/test_images/t0.png"),
    "image: cut off, though damaged ones may be used": image(JPEG[:1500], COPY, args=(*TRAIN, *GOES_ON)),
    "image: cut off in its pixels, in training": image(PNG[:300], *IS_DAMAGED),
    "image: a bomb": image(
        png_header(100_000, 100_000), "Image size (10000000000 pixels) exceeds limit", "Cut it into smaller"
    ),
    "image: very wide": image(png_header(2_000_000, 2), "2000000 x 2 pixels (W x H) exceeds a side of"),
    "image: a pipe": pipe("data/train_images/03.png", COPY),
    "image: a pipe, in predict": pipe("data/test_images/t0.png", COPY, args=PREDICT),
    "image: a pipe, in check": pipe(
        "data/test_images/t0.png", COPY, args=("check", "s.csv", "-i", "data/test_images")
    ),
    "image: a device": Case(
        ["data/train_images/03.png: cannot be read: is a device"],
        spoil=lambda: [
            Path("data/train_images/03.png").unlink(),
            Path("data/train_images/03.png").symlink_to("/dev/zero"),
        ],
    ),
    "images of check: a folder of a name too long": Case(
        ["cannot be read: File name too long (-i)"],
        ("check", "s.csv", "-i", "x" * 300),
        lambda: Path("s.csv").write_text(f"{OF_2019}t0.png_1,\n"),
    ),
    "image name: control characters": named(b"a\x1b[2K\r.png", r"data/train_images/a\x1b[2K\r.png: "),
    "image name: a line break": named(b"a\n,b.png", r"data/train_images/a\n,b.png: "),
    "image name: no UTF-8": named(b"\xff.png", r"data/train_images/\udcff.png: "),
    "image name: a space before it": named(b" a.png", "data/train_images/ a.png: "),
    "image name: no UTF-8, in predict": named(
        b"\xff.png", r"data/test_images/\udcff.png: ", args=PREDICT, folder="data/test_images"
    ),
    "image: a folder": Case(["data/train_images/03.png", COPY], spoil=folder_as_image),
    "image: a folder of a name too long": Case(
        ["cannot be read: File name too long (keys data_dir and images)"],
        (*TRAIN, "-s", f"data_loader.args.images={'x' * 300}"),
    ),
    "image: none": Case(
        ["data/empty: holds no image", "name another folder"],
        (*TRAIN, "-s", "data_loader.args.images=empty"),
        lambda: Path("data/empty").mkdir(),
    ),
}

# ------------------------------------------------------------------------------------- checkpoints


class RunsCode:
    """What a malicious file holds."""

    def __reduce__(self):
        return (Path.touch, (Path(MARKER),))


def checkpoint(change, *words, args=TEST):
    """A case of another model.pth: other bytes, or what becomes of a good one."""

    def spoil():
        if isinstance(change, bytes):
            Path("model.pth").write_bytes(change)
            return
        torch.save(change(torch.load("model.pth", weights_only=True)), "model.pth")

    return Case(["model.pth", *words], args, spoil)


def pickled(thing):
    buffer = io.BytesIO()
    torch.save(thing, buffer)
    return buffer.getvalue()


EVIL = pickled({"state_dict": RunsCode()})
HOLDS_MORE = "holds more than tensors and plain values"
CHECKPOINTS = {
    "checkpoint: none": Case(
        [
            "modle.pth: no such checkpoint file",
            "Did you mean 'model.pth'? Beside it: c.yml, data, model.pth.",
        ],
        ("test", "-r", "modle.pth"),
        lambda: Path(".hidden").touch(),
    ),
    "checkpoint: empty": checkpoint(b"", "is empty (0 bytes)", "another checkpoint"),
    "checkpoint: text": checkpoint(b"text", "is damaged", "another checkpoint of its run"),
    "checkpoint: an image": checkpoint(PNG, "is damaged or not a file of torch.save"),
    "checkpoint: weights alone": checkpoint(
        lambda state: {"state_dict": state["state_dict"]}, "it lacks arch, epoch, config", "encoder_weights"
    ),
    "checkpoint: a tensor": checkpoint(lambda _: torch.zeros(3), "expected a checkpoint", "a Tensor"),
    "checkpoint: older format": checkpoint(
        lambda state: state | {"format": 0}, "written in format 0, this program reads format 1", "train again"
    ),
    "checkpoint: no format": checkpoint(
        lambda state: {key: value for key, value in state.items() if key != "format"}, "in format None"
    ),
    "checkpoint: its config is a text": checkpoint(
        lambda state: state | {"config": "c.yml"}, "plain values under 'config', received a str"
    ),
    "checkpoint: its config holds a tensor": checkpoint(
        lambda state: state | {"config": state["config"] | {"own": torch.zeros(1)}}, "under 'config'"
    ),
    "checkpoint: its config lacks a section": checkpoint(
        lambda state: state | {"config": {"name": "x"}}, "model.pth (its config): 'arch' is missing"
    ),
    "checkpoint: its weights are a list": checkpoint(
        lambda state: state | {"state_dict": [1, 2]}, "names with tensors under 'state_dict'"
    ),
    "checkpoint: its epoch is a text": checkpoint(
        lambda state: state | {"epoch": "last"}, "a number under 'epoch'"
    ),
    "checkpoint: its split is a list": checkpoint(lambda state: state | {"split": ["a.png"]}, "'split'"),
    "checkpoint: another architecture": checkpoint(
        lambda state: state | {"state_dict": {"a": torch.zeros(1)}},
        "of another architecture",
        "leave out -c",
    ),
    "checkpoint: other widths": Case(
        ["model.pth", "of another architecture", "expected shape"],
        (*TEST, "-c", "c.yml", "-s", "arch.args.decoder_channels=[32, 16, 8]"),
    ),
    "checkpoint: runs code": checkpoint(EVIL, HOLDS_MORE),
    "checkpoint: runs code in predict": checkpoint(EVIL, HOLDS_MORE, args=PREDICT),
    "checkpoint: runs code in train": checkpoint(EVIL, HOLDS_MORE, args=("train", "-r", "model.pth")),
    "checkpoint: runs code in a new run": checkpoint(EVIL, HOLDS_MORE, args=(*TRAIN, "-r", "model.pth")),
    "checkpoint: runs code in average": checkpoint(EVIL, HOLDS_MORE, args=("average", "-r", "model.pth")),
    "checkpoint: code in the place of its config": checkpoint(
        pickled({"arch": "Unet", "epoch": 1, "state_dict": {}, "config": RunsCode(), "format": 1}), HOLDS_MORE
    ),
    "checkpoint: code among its weights": checkpoint(
        pickled({"arch": "Unet", "epoch": 1, "state_dict": {"a": RunsCode()}, "config": {}}), HOLDS_MORE
    ),
    "encoder weights: run code": Case(
        ["arch.args.encoder_weights: 'weights.pth' cannot be read", HOLDS_MORE],
        (*TRAIN, "-s", "arch.args.encoder_weights=weights.pth"),
        lambda: Path("weights.pth").write_bytes(EVIL),
    ),
    "encoder weights: code that is called safetensors": Case(
        ["arch.args.encoder_weights: 'weights.safetensors' cannot be read"],
        (*TRAIN, "-s", "arch.args.encoder_weights=weights.safetensors"),
        lambda: Path("weights.safetensors").write_bytes(EVIL),
    ),
    "checkpoint: a folder": Case(
        ["data: is a folder without a checkpoint; name the .pth file of a run"], ("test", "-r", "data")
    ),
    "checkpoint: a folder of runs": Case(
        ["runs: is a folder of 2 runs; name a checkpoint, such as runs/1/model_best.pth, runs/2/model"],
        ("test", "-r", "runs"),
        lambda: [draw_images(Path("runs", run), ["model_best.pth"]) for run in "12"],
    ),
    "checkpoint: a folder of one run": Case(
        ["runs: is a folder of one run; name a checkpoint, such as runs/1/model_best.pth"],
        ("test", "-r", "runs"),
        lambda: draw_images(Path("runs", "1"), ["model_best.pth"]),
    ),
    "checkpoint: away from its run": Case(
        ["model.pth: is not in the folder of its run", "-c FILE -r model.pth"], ("train", "-r", "model.pth")
    ),
}

# ----------------------------------------------------------------------------- devices and options


def options(*args_and_words):
    """A case of a command line: its parts up to None, then the words."""
    at = args_and_words.index(None)
    return Case(args_and_words[at + 1 :], args_and_words[:at])


def file(name, text, *args_and_words):
    """A case of a command line and a file that it names."""
    at = args_and_words.index(None)
    return Case(args_and_words[at + 1 :], args_and_words[:at], lambda: Path(name).write_text(text))


ARGUMENTS = {
    "device: tpu": options(
        "test", "-r", "model.pth", "-d", "tpu", None, "--device tpu", "expected auto", "'tpu'"
    ),
    "device: gpu": options(*TRAIN, "-d", "gpu", None, "received 'gpu'. The first GPU is -d 0"),
    "device: cuda:0": options(*TRAIN, "-d", "cuda:0", None, "received 'cuda:0'", "-d 0"),
    "device: -1": options(*TRAIN, "-d", "-1", None, "received '-1'"),
    "device: nothing": options(*TRAIN, "-d", "", None, "expected auto, cpu, the number of a GPU"),
    "device: GPU 99": options(*TRAIN, "-d", "99", None, "there is no GPU 99", "GPUs that are there"),
    "device: 5000 digits": options(*TRAIN, "-d", "9" * 5000, None, "received '9999"),
    "device: hexadecimal": options(*TRAIN, "-d", "0,0x1", None, "'0x1'"),
    "device: a GPU twice": options(*TRAIN, "-d", "0,0", None, "names GPU 0 twice"),
    "device: GPU and CPU": options(*TRAIN, "-d", "0,cpu", None, "GPUs alone or the CPU alone"),
    "device: auto in a list": options(*TRAIN, "-d", "auto,cpu", None, "received 'auto'"),
    "device: more than images": options(*TRAIN, "-d", "cpu," * 19 + "cpu", "--dry-run", None, "batch_size"),
    "no config": options("train", None, "-c FILE", "-r CKPT"),
    "no such command": options("trian", None, "No such command 'trian'"),
    "no such option": options(*TRAIN, "--dryrun", None, "No such option", "--dry-run"),
    "no checkpoint": options("test", None, "give -r CKPT; "),
    "auto without config": options("train", "-r", "auto", None, "-r auto needs -c FILE"),
    "a checkpoint twice": options(*TEST, "-r", "model.pth", None, "-r model.pth: is given twice"),
    "weights of one": options(*TEST, "--weights", "1,x", None, "expected numbers separated by commas"),
    "no such average": options(*TEST, "--average", "median", None, "median", "mean"),
    "no such flips": options(*TEST, "--tta", "diagonal", None, "diagonal", "hflip"),
    "output in a file": options(*TEST, "-o", "c.yml/s.json", None, "-o c.yml/s.json", "not a folder"),
    "output is a folder": options(*PREDICT, "-o", "data", None, "-o data: is a folder; give the name of a"),
    "output is the input": options(
        *PREDICT, "-o", "data/train.csv", None, "-o data/train.csv", "choose another"
    ),
    "output of another kind": options(*PREDICT, "-o", "s.json", None, "expected a name that ends with .csv"),
    "images of an option": options(*PREDICT, "-i", "/nosuch", None, "/nosuch: no image there"),
    "images of an option are a file": options(*PREDICT, "-i", "c.yml", None, "c.yml: not an image"),
    "images of a config": options(
        *PREDICT, "-s", "predict.images=tset_images", None, "data_dir and predict.images", "'test_images'?"
    ),
    "settings: none": options(*TEST, "--settings", "no.yml", None, "--settings no.yml: no such file"),
    "settings: a pipe": pipe("t.yml", "--settings t.yml", args=(*TEST, "--settings", "t.yml")),
    "settings: a config": options(*TEST, "--settings", "c.yml", None, "expected a section 'predict:'"),
    "settings: wrong value": file(
        "t.yml", "predict: {threshold: 7}\n", *TEST, "--settings", "t.yml", None, "t.yml: predict.threshold"
    ),
    "sample submission: none": options(*PREDICT, "--sample-submission", "s.csv", None, "s.csv: no such file"),
    "sample submission: a pipe": pipe(
        "s.csv", "give the name of a CSV", args=(*PREDICT, "--sample-submission", "s.csv")
    ),
    "sample submission: a device": options(
        *PREDICT, "--sample-submission", "/dev/zero", None, "/dev/zero: is a device; give the name of a CSV"
    ),
    "sample submission: semicolons": file(
        *("s.csv", "ImageId;EncodedPixels;ClassId\n", *PREDICT, "--sample-submission", "s.csv", None),
        "separated by semicolons: save it with commas",
    ),
    "sample submission: columns": file(
        *("sample.csv", "a,b\n1,2\n", *PREDICT, "--sample-submission", "sample.csv", None),
        "expected the columns ImageId_ClassId,EncodedPixels or ImageId,EncodedPixels,ClassId",
    ),
    "sample submission: no such image": file(
        *("sample.csv", "ImageId,EncodedPixels,ClassId\ngone.png,1 1,0\n"),
        *(
            *PREDICT,
            "--sample-submission",
            "sample.csv",
            None,
            "image 'gone.png' is not there; give its folder",
        ),
    ),
    "sample submission: path": file(
        *("sample.csv", "ImageId,EncodedPixels,ClassId\n../train_images/00.png,1 1,0\n"),
        *(*PREDICT, "--sample-submission", "sample.csv", None, "'../train_images/00.png' is not there"),
    ),
    "verify: no config": options("verify", "-c", "none.yml", None, "none.yml: cannot be read"),
    "synth: a small size": options("synth", "new", "--size", "4", "4", None, "'--size'", "x>=16"),
    "folds without folds": options(*TRAIN, "--all-folds", None, "c.yml: data_loader.args.folds", "folds=5"),
}

CASES = SECTIONS | FILES | OPTIONS | CSVS | IMAGES | CHECKPOINTS | ARGUMENTS


# ------------------------------------------------------------------------------------- odd, but good


def writing(path, content):
    return lambda: Path(path).write_bytes(content if isinstance(content, bytes) else content.encode())


def good_rows(text):
    """The rows of the good data as another text."""
    return lambda: Path("data/train.csv").write_bytes(text(Path("data/train.csv").read_bytes()))


def replaced(pixels):
    """An image of the training with other pixels, read as grey by contract."""
    return lambda: cv2.imwrite("data/train_images/03.png", pixels)


ODD = {
    "BOM and CRLF in the config": lambda: Path("c.yml").write_bytes(
        b"\xef\xbb\xbf" + Path("c.yml").read_bytes().replace(b"\n", b"\r\n")
    ),
    "7e-5 and .5": lambda: Path("c.yml").write_text(
        Path("c.yml").read_text().replace("0.0007", "7e-5").replace("0.25", ".25")
    ),
    "a section of one's own": lambda: Path("c.yml").write_text(Path("c.yml").read_text() + "mill: {no: 3}\n"),
    "csv: BOM": good_rows(lambda rows: b"\xef\xbb\xbf" + rows),
    "csv: CRLF": good_rows(lambda rows: rows.replace(b"\n", b"\r\n")),
    "csv: CR alone": good_rows(lambda rows: rows.replace(b"\n", b"\r")),
    "csv: blank lines": good_rows(lambda rows: rows.replace(b"\n", b"\n\n,,\n")),
    "csv: no end of the last line": good_rows(bytes.rstrip),
    "csv: quotes": good_rows(lambda rows: re.sub(rb"(\d+ \d+)", rb'"\1"', rows)),
    "csv: rows without masks": good_rows(lambda rows: rows + b"07.png,1,\n"),
    "image: 16 bits": replaced(np.full((8, 8), 30_000, np.uint16)),
    "image: RGBA": replaced(np.full((8, 8, 4), 99, np.uint8)),
    "image: 1 x 1": lambda: draw_images(Path("data/train_images"), ["07.png"], (1, 1)),
    "image: 30,000 wide": lambda: draw_images(Path("data/train_images"), ["07.png"], (8, 30_000)),
    "image: a long name and odd characters": lambda: Path("data/train_images/07.png").rename(
        f"data/train_images/{'ß' * 122}, \"';=x.png"
    ),
    "image: a JPEG with more behind its end": writing("data/train_images/03.png", JPEG + JPEG + bytes(99)),
    "a text beside the images": writing("data/train_images/readme.txt", "no image"),
}


# ------------------------------------------------------------------------------------------- tests


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A folder with good input: data, c.yml and model.pth, whose paths are relative to it."""
    folder = tmp_path_factory.mktemp("good")
    classes = numbered([(1, [1]), (1, [2]), (1, [3, 4]), (2, [1, 3]), (1, [4, 2]), (2, [])])
    draw_data(folder / "data", classes)
    draw_images(folder / "data" / "test_images", ["t0.png", "t1.png"])
    for number, path in enumerate(sorted((folder / "data" / "train_images").iterdir())):
        path.rename(path.with_name(f"{number:02d}.png"))
    csv_path = folder / "data" / "train.csv"
    csv_path.write_text(re.sub(r"^0(\d\d)", r"\1", csv_path.read_text(), flags=re.MULTILINE))
    config = steel_config(Path("data"), Path("saved")) | {
        "testing": {"csv": "train.csv", "images": "train_images"}
    }
    write_config(folder / "c.yml", config)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run = run_folder(done("train", "-c", "c.yml", "-s", "training.epochs=1", "-s", "training.verbose=0"))
        shutil.move(run / "checkpoint_epoch_1.pth", folder / "model.pth")
    shutil.rmtree(folder / "saved")
    return folder


@pytest.fixture
def place(good, tmp_path, monkeypatch):
    """A copy of it to spoil, as the working folder."""
    shutil.copytree(good, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


def state_of(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_there_are_enough_cases():
    assert len(CASES) >= 80


@pytest.mark.parametrize("case", CASES.values(), ids=[name[:60] for name in CASES])
def test_bad_input_is_one_message_and_leaves_nothing(case, place):
    case.spoil()
    before = state_of(place)
    message = mistake(*case.args)
    assert [word for word in case.words if word not in message] == [], message
    assert len(re.findall(r"^(sever: |Usage: )", message, flags=re.MULTILINE)) == 1, message
    assert state_of(place) == before


@pytest.mark.parametrize("spoil", ODD.values(), ids=ODD)
def test_odd_input_is_read_as_it_is_meant(spoil, place):
    spoil()
    (counts,) = re.findall(r"^training .*$", done(*TRAIN), flags=re.MULTILINE)
    assert counts.endswith("6 images (class 1: 2, class 2: 2, class 3: 3, class 4: 2, clean: 1)")


def test_damaged_images_are_used_where_the_config_says_so(place):
    for folder, name in (("train_images", "03.png"), ("test_images", "t0.png")):
        Path("data", folder, name).write_bytes(DAMAGED)
    told = "is damaged: some of its pixels are wrong. It is used as it is"
    output = done("train", "-c", "c.yml", *GOES_ON, "-s", "training.epochs=1")
    assert f"data/train_images/03.png: {told}" in output
    assert f"data/test_images/t0.png: {told}" in done(*PREDICT, *GOES_ON)
    assert len(Path("submission.csv").read_text().splitlines()) == 9
    assert f"data/train_images/03.png: {told}" in done(*TEST, *GOES_ON)
    report = done("verify", "-c", "c.yml", *GOES_ON)
    assert "warning: damaged image that is used as it is" in report
    assert "0 errors" in report


@pytest.mark.parametrize("image", [name for name in ODD if name.startswith("image")])
def test_odd_images_can_be_trained_on(place, image):
    ODD[image]()
    run = run_folder(done("train", "-c", "c.yml", "-s", "training.epochs=1"))
    state = torch.load(run / "checkpoint_last.pth", weights_only=True)["state_dict"]
    assert all(weight.isfinite().all() for weight in state.values())
