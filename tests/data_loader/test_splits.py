"""k folds and groups: what is held out, that folds are one partition, and that groups stay together."""

import csv
from itertools import pairwise

import pytest
from runs import SIZE, done, mistake, run_folder, steel_config, write_config
from sheets import draw_data, numbered

from sever.data_loader.augmentation.pipelines import HeavyCropTransforms
from sever.data_loader.data_loaders import SteelSegDataLoader
from sever.utils.errors import DataError

SETS = [(20, ()), (11, (1,)), (5, (2,)), (2, (1, 2)), (1, (1, 3)), (1, (3,))]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """40 images; class 1 is in 14, class 2 in 7, class 3 in 2; four sets of classes are rarer than 6."""
    folder = draw_data(tmp_path_factory.mktemp("folds"), numbered(SETS))
    rows = [f"{index:03d}.png,coil {index // 5}\n" for index in range(30)]
    (folder / "groups.csv").write_text("ImageId,GroupId\n" + "".join(rows))
    return folder


def loader_of(data_dir, **args):
    return SteelSegDataLoader(
        str(data_dir), classes=3, augmentation=HeavyCropTransforms(8, 8), batch_size=4, **{"seed": 7} | args
    )


def held_out(data_dir, **args):
    loader = loader_of(data_dir, **args)
    validation = loader.split_validation()
    assert sorted([*loader.indices, *validation.indices]) == list(range(40))
    return validation.indices.tolist()


@pytest.mark.parametrize("groups", [None, "groups.csv"])
def test_folds_are_one_partition(data_dir, groups):
    folds = [held_out(data_dir, folds=4, fold=fold, groups=groups) for fold in (1, 2, 3, 4)]
    assert sorted(index for fold in folds for index in fold) == list(range(40))
    assert held_out(data_dir, folds=4, groups=groups) == folds[0]  # the first where none is named
    assert held_out(data_dir, folds=4, fold=2, groups=groups, seed=8) != folds[1]


def test_folds_depend_on_the_seed_alone(data_dir):
    first = held_out(data_dir, folds=3, fold=2)
    assert held_out(data_dir, folds=3, fold=2, balance={"alpha": 1.0, "kind": "random"}) == first
    assert held_out(data_dir, folds=3, fold=2, drop_last=True, num_workers=1) == first


@pytest.mark.parametrize(
    "how", [{"folds": 4, "fold": 3}, {"validation_split": 0.25}, {"validation_split": 10}]
)
def test_images_of_a_group_are_on_one_side(data_dir, how):
    indices = held_out(data_dir, groups="groups.csv", **how)
    for first in range(0, 30, 5):  # six groups of five, then ten images by themselves
        assert len({index in indices for index in range(first, first + 5)}) == 1
    assert 8 <= len(indices) <= 12
    assert any(index >= 30 for index in indices)


def test_an_earlier_run_s_split_is_used_again(data_dir):
    loader = loader_of(data_dir, folds=4, fold=2)
    validation = loader.split_validation()
    other = loader_of(data_dir, validation_split=0.5)
    assert other.split_validation(loader.split).indices.tolist() == validation.indices.tolist()


@pytest.mark.parametrize(
    ("rows", "faults"),
    [
        ("ImageId,Group\n000.png,a\n", ["expected the columns ImageId,GroupId, received ImageId,Group"]),
        (
            "ImageId,GroupId\n000.png,a\n0001.png,a\n\n002.png,\n000.png,b\n",
            [
                "row 3: image '0001.png' is not in",
                "row 5: expected the GroupId of image '002.png', received nothing",
                "row 6: image '000.png' has a group in an earlier row already",
            ],
        ),
    ],
)
def test_faults_of_the_groups_are_named_with_their_rows(data_dir, tmp_path, rows, faults):
    (tmp_path / "g.csv").write_text(rows)
    with pytest.raises(DataError) as error:
        loader_of(data_dir, groups=str(tmp_path / "g.csv"))
    lines = str(error.value).splitlines()
    assert len(lines) == len(faults)
    for line, fault in zip(lines, faults, strict=True):
        assert "g.csv" in line
        assert fault in line


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ({"folds": 41}, r"folds: expected at most 40, the number of images; received 41"),
        (
            {"folds": 17, "groups": "groups.csv"},
            r"folds: expected at most 16, the number of groups of images",
        ),
        ({"groups": "one.csv"}, r"groups: 1 groups of images leave none for validation"),
        ({"groups": "none.csv"}, r"none\.csv: no such CSV \(keys data_dir and groups\)"),
    ],
)
def test_a_split_that_cannot_be_is_refused(data_dir, args, expected):
    rows = [f"{index:03d}.png,same\n" for index in range(40)]
    (data_dir / "one.csv").write_text("ImageId,GroupId\n" + "".join(rows))
    with pytest.raises(DataError, match=expected):
        loader_of(data_dir, **args).split_validation()


def test_without_validation_groups_have_nothing_to_do(data_dir):
    loader = loader_of(data_dir, groups="groups.csv", validation_split=0)
    assert loader.split_validation() is None
    assert len(loader.indices) == 40


# ------------------------------------------------------------------------- through the command line


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    done("synth", folder / "data", "-n", "8", "--size", *map(str, SIZE))
    names = sorted(path.name for path in (folder / "data" / "train_images").iterdir())
    rows = [f"{first},{first}\n{second},{first}\n" for first, second in list(pairwise(names))[::2]]
    (folder / "data" / "coils.csv").write_text("ImageId,GroupId\n" + "".join(rows))
    values = steel_config(folder / "data", folder / "saved")
    del values["data_loader"]["args"]["validation_split"]
    values["data_loader"]["args"] |= {"folds": 2, "groups": "coils.csv"}
    values["training"]["epochs"] = 1
    return write_config(folder / "folds.yml", values)


def test_runs_of_all_folds_hold_out_each_image_once_and_whole_groups(config):
    held = []
    for fold in (1, 2):
        run = run_folder(done("train", "-c", config, "-s", f"data_loader.args.fold={fold}"))
        with (run / "split.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        held.append({row["image"] for row in rows if row["split"] == "validation"})
        assert len(rows) == 8
    names = sorted(set.union(*held))
    assert [len(images) for images in held] == [4, 4]
    assert len(names) == 8
    for first, second in list(pairwise(names))[::2]:
        assert [first in images for images in held] == [second in images for images in held]


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("fold=4", "fold: expected 1 to 2 (folds), received 4"),
        ("fold=0", "fold: expected 1 to 2 (folds), received 0"),
        ("folds=1", "folds: expected at least 2, received 1"),
        ("folds=3.5", "data_loader.args.folds: expected"),
        (
            "validation_split=0.2",
            "validation_split: expected none beside folds, which holds out one part in 2",
        ),
        ("groups=coil.csv", "Did you mean 'coils.csv'?"),
    ],
)
def test_a_mistake_in_the_config_is_one_message(config, setting, expected):
    assert expected in mistake("train", "-c", config, "--dry-run", "-s", f"data_loader.args.{setting}")


def test_more_folds_than_anyone_trains_are_refused_before_they_are_counted(config):
    message = mistake(
        *("train", "-c", config, "--all-folds", "--dry-run"), "-sdata_loader.args.folds=1000000000"
    )
    assert "data_loader.args.folds: expected less than or equal to 1000, received 1000000000" in message


def test_a_fold_needs_folds(config):
    message = mistake(
        *("train", "-c", config, "--dry-run", "-s", "data_loader.args.folds=null"),
        *("-s", "data_loader.args.fold=2"),
    )
    assert "fold: expected 'folds' beside it, received fold 2 alone" in message
