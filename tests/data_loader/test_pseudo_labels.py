"""Pseudo-labelled images: which there are, how many batches hold, and where they must not be."""

from collections import Counter
from itertools import chain

import numpy as np
import pytest
from runs import SIZE, done, mistake, steel_config, write_config
from sheets import OF_2019, TODAY, draw_data, draw_images, numbered

from sever.data_loader.augmentation.pipelines import HeavyCropTransforms, LightTransforms
from sever.data_loader.data_loaders import SteelSegDataLoader
from sever.utils.errors import DataError

NAMES = [f"p{index:02d}.png" for index in range(20)]


@pytest.fixture
def data_dir(tmp_path):
    """50 labelled images, and 20 pseudo-labelled ones, all of class 2, among 25 in the folder."""
    draw_data(tmp_path, numbered([(30, ()), (10, (1,)), (10, (2,))]))
    draw_images(tmp_path / "test_images", [*NAMES, *(f"q{index}.png" for index in range(5))], grey=200)
    (tmp_path / "pseudo.csv").write_text(TODAY + "".join(f"{name},2,3 2\n" for name in NAMES))
    return tmp_path


def loader_of(data_dir, pseudo=None, **args):
    args = {"augmentation": LightTransforms(), "batch_size": 8, "validation_split": 0, "seed": 5} | args
    pseudo = {"csv": "pseudo.csv", "share": 0.25, "rate": 0.6} | (pseudo or {})
    return SteelSegDataLoader(str(data_dir), classes=2, pseudo=pseudo, **args)


def batches_of(loader, epoch):
    loader.set_epoch(epoch)
    return list(loader.batch_sampler)


def pseudo_in(batches):
    return [index - 50 for index in chain.from_iterable(batches) if index >= 50]


def test_each_batch_has_its_share_and_an_epoch_is_one_pass_over_the_labelled_images(data_dir):
    loader = loader_of(data_dir)
    batches = batches_of(loader, 1)
    assert [len(pseudo_in([batch])) for batch in batches] == [2] * 9
    assert [len(batch) for batch in batches] == [8] * 8 + [4]  # 6 labelled ones a batch, and 2 left
    assert sorted(index for batch in batches for index in batch if index < 50) == list(range(50))
    assert len(loader) == 9
    assert len(loader_of(data_dir, drop_last=True)) == 8
    assert {len(batch) for batch in batches_of(loader_of(data_dir, drop_last=True), 1)} == {8}
    assert loader.samples_per_epoch() == {"1": 10, "2": 10, "clean": 30, "pseudo": 18}


@pytest.mark.parametrize(
    ("share", "batch_size", "count"), [(0.12, 18, 2), (0.12, 8, 1), (0.12, 25, 3), (0.5, 2, 1)]
)
def test_the_share_is_rounded_to_whole_images(data_dir, share, batch_size, count):
    loader = loader_of(data_dir, {"share": share}, batch_size=batch_size, drop_last=True)
    assert {len(pseudo_in([batch])) for batch in batches_of(loader, 1)} == {count}


def test_an_epoch_draws_from_a_fresh_part_of_the_pseudo_labelled_images(data_dir):
    loader = loader_of(data_dir)
    pools = []
    for epoch in range(1, 9):
        drawn = Counter(pseudo_in(batches_of(loader, epoch)))
        assert len(drawn) == 12  # 60 % of 20
        assert sorted(drawn.values()) == [1] * 6 + [2] * 6  # 18 places: each once before any comes twice
        pools.append(frozenset(drawn))
    assert len(set(pools)) == 8
    assert frozenset.union(*pools) == frozenset(range(20))
    assert len(set(pseudo_in(batches_of(loader_of(data_dir, {"rate": 1.0}), 1)))) == 18


def test_the_rest_of_a_batch_is_balanced(data_dir):
    loader = loader_of(data_dir, balance={"alpha": 1.0})
    for batch in batches_of(loader, 1):
        kinds = [
            "clean" if index < 30 else "1" if index < 40 else "2" if index < 50 else "p" for index in batch
        ]
        assert Counter(kinds) == {"clean": 2, "1": 2, "2": 2, "p": 2}


def test_samples_are_the_images_and_masks_of_the_pseudo_csv(data_dir):
    dataset = loader_of(data_dir).dataset
    assert len(dataset) == 70
    for index in range(50, 70):
        image, masks = dataset[index]
        assert image.float().mean() > 150
        assert masks.sum(dim=(1, 2)).tolist() == [0, 2]
    assert dataset[30][0].max() < 50
    assert dataset[30][1].sum(dim=(1, 2)).tolist() == [1, 0]


@pytest.mark.parametrize("how", [{"validation_split": 0.3}, {"validation_split": None, "folds": 4}])
def test_none_is_ever_in_validation_or_in_the_split(data_dir, how):
    loader = loader_of(data_dir, **how)
    validation = loader.split_validation()
    named = {name for half in loader.split.values() for name in half}
    assert named == {f"{index:03d}.png" for index in range(50)}
    assert max(validation.indices) < 50
    assert sum(len(images) for images, _ in validation) == len(validation.indices) >= 12
    assert max(loader.indices) < 50
    drawn = list(chain.from_iterable(batches_of(loader, 1)))
    assert set(drawn) & set(range(50)) == set(loader.indices.tolist())
    assert pseudo_in([drawn])


def test_a_split_that_was_written_down_leaves_the_same_batches(data_dir):
    loader = loader_of(data_dir, validation_split=0.3)
    loader.split_validation()
    other = loader_of(data_dir, validation_split=0.2)
    other.split_validation(loader.split)
    assert batches_of(other, 3) == batches_of(loader, 3)


def test_the_labelled_images_come_in_the_order_that_they_have_without(data_dir):
    mixed = SteelSegDataLoader(
        str(data_dir),
        classes=2,
        augmentation=LightTransforms(),
        batch_size=8,
        validation_split=0,
        seed=5,
    )
    mixed.set_epoch(2)
    plain = list(chain.from_iterable(mixed.batch_sampler))
    batches = [[index for index in batch if index < 50] for batch in batches_of(loader_of(data_dir), 2)]
    assert [set(batch) for batch in batches] == [set(plain[at : at + 6]) for at in range(0, 50, 6)]


@pytest.mark.parametrize("layout", ["2019", "today"])
def test_only_images_that_the_csv_names_count(data_dir, layout):
    """A row without a mask names a clean image; a file that no row names is no image of the set."""
    text = {
        "2019": OF_2019 + "p00.png_1,\np00.png_2,\np03.png_1,1 2\np03.png_2,\nq1.png_1,\nq1.png_2,5 1\n",
        "today": TODAY + "p00.png,1,\np03.png,1,1 2\nq1.png,2,5 1\n",
    }[layout]
    (data_dir / "other.csv").write_text(text)
    dataset = loader_of(data_dir, {"csv": "other.csv"}).dataset
    assert dataset.pseudo.names == ["p00.png", "p03.png", "q1.png"]
    assert dataset.pseudo.present.tolist() == [[False, False], [True, False], [False, True]]


def test_paths_may_be_absolute(data_dir, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    draw_images(elsewhere / "pictures", ["p00.png"])
    (elsewhere / "labels.csv").write_text(TODAY + "p00.png,1,1 2\n")
    pseudo = {"csv": str(elsewhere / "labels.csv"), "images": str(elsewhere / "pictures")}
    assert loader_of(data_dir, pseudo).dataset.pseudo.folder == elsewhere / "pictures"


def test_the_same_name_in_another_folder_is_another_image(data_dir):
    draw_images(data_dir / "more", ["000.png"], grey=200)
    (data_dir / "more.csv").write_text(TODAY + "000.png,1,1 2\n")
    dataset = loader_of(data_dir, {"csv": "more.csv", "images": "more"}).dataset
    assert dataset[50][0].min() > 100 > dataset[0][0].max()


def test_every_fault_of_the_csv_is_named_with_its_row(data_dir):
    rows = ["p00.png,3,1 2", "p99.png,1,1 2", "p01.png,1,64 2", "p02.png,1,1 2", "p02.png,1,1 2"]
    (data_dir / "pseudo.csv").write_text(TODAY + "\n".join(rows) + "\n")
    with pytest.raises(DataError) as error:
        loader_of(data_dir)
    faults = str(error.value).splitlines()
    expected = ["row 2: expected a ClassId from 1 to 2, received '3'", "row 3: image 'p99.png' is not in"]
    expected += [
        "row 4: image 'p01.png', class 1: run '64 2' leaves",
        "row 6: image 'p02.png' has class 1 in an",
    ]
    assert len(faults) == 4
    for fault, part in zip(faults, expected, strict=True):
        assert f"pseudo.csv, {part}" in fault


def test_an_image_cannot_be_labelled_and_pseudo_labelled(data_dir):
    (data_dir / "pseudo.csv").write_text(TODAY + "001.png,2,1 2\n041.png,2,1 2\n")
    (data_dir / "link").symlink_to(data_dir / "train_images")
    for folder in ("train_images", "link"):
        with pytest.raises(
            DataError, match=r"pseudo\.images: expected another folder .*'001\.png'.*is labelled"
        ):
            loader_of(data_dir, {"images": folder})


@pytest.mark.parametrize(
    ("pseudo", "expected"),
    [
        (
            {"csv": "psuedo.csv"},
            r"no such CSV \(keys data_dir and pseudo\.csv\).* Did you mean 'pseudo\.csv'",
        ),
        ({"images": "test"}, r"no such folder of images \(keys data_dir and pseudo\.images\)"),
        (
            {"csv": "none.csv"},
            r"none\.csv: expected rows that name images, received none \(key pseudo\.csv\)",
        ),
    ],
)
def test_missing_files_are_named_with_their_keys(data_dir, pseudo, expected):
    (data_dir / "none.csv").write_text(TODAY)
    with pytest.raises(DataError, match=expected):
        loader_of(data_dir, pseudo)


@pytest.mark.parametrize(
    ("pseudo", "expected"),
    [
        ({"share": 0.05}, r"pseudo\.share: expected .* 1 to 7 of the 8 .* received 0\.05, which gives 0"),
        ({"share": 0.95}, r"pseudo\.share: expected .* 1 to 7 of the 8 .* received 0\.95, which gives 8"),
        ({"share": 1.2}, r"pseudo\.share: expected a number between 0 and 1, received 1\.2"),
        ({"rate": 0.0}, r"pseudo\.rate: expected a number above 0 and up to 1, received 0"),
        ({"rate": 1.1}, r"pseudo\.rate: expected a number above 0 and up to 1, received 1\.1"),
    ],
)
def test_shares_that_make_no_sense_are_refused(data_dir, pseudo, expected):
    with pytest.raises(ValueError, match=expected):
        loader_of(data_dir, pseudo)


def test_images_of_other_sizes_need_a_crop(data_dir):
    draw_images(data_dir / "test_images", NAMES, size=(8, 16))
    loader_of(data_dir, augmentation=HeavyCropTransforms(8, 8))
    with pytest.raises(DataError, match=r"train_images and .*test_images: holds images of 2 sizes"):
        loader_of(data_dir)


def test_the_loader_of_test_images_has_none(data_dir):
    (data_dir / "test.csv").write_text(TODAY + "p00.png,1,1 2\n")
    loader = SteelSegDataLoader(
        str(data_dir), classes=2, pseudo={"csv": "gone.csv"}, balance={"alpha": 1.0}, training=False
    )
    assert sorted(chain.from_iterable(loader.batch_sampler)) == list(range(25))


def test_the_real_pseudo_labels(shared_data, tmp_path):
    source = shared_data / "rle" / "pseudo.csv"
    if not source.is_file():
        pytest.skip(f"no {source}")
    names = sorted({line.partition(".jpg")[0] + ".jpg" for line in source.read_text().splitlines()[1:]})
    draw_images(tmp_path / "test_images", names, size=(256, 1600))
    draw_images(tmp_path / "train_images", [f"{index}.png" for index in range(160)], size=(256, 1600))
    (tmp_path / "train.csv").write_text(TODAY + "3.png,3,1 9\n")
    loader = SteelSegDataLoader(
        str(tmp_path), batch_size=18, validation_split=0, pseudo={"csv": str(source)}, seed=1
    )
    table = loader.dataset.pseudo
    assert len(table) == 1801
    assert table.present.sum() == 782
    masks = [table.masks(index) for index in np.flatnonzero(table.present.any(axis=1))[:10]]
    assert all(mask.any() for mask in masks)
    loader.set_epoch(1)
    batches = list(loader.batch_sampler)
    assert len(batches) == 10  # 16 labelled images in each
    assert {sum(index >= 160 for index in batch) for batch in batches} == {2}


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("pseudo={cvs: pseudo.csv}", ["data_loader.args.pseudo: ", "'cvs'", "Did you mean 'csv'?"]),
        ("pseudo={share: 0.2}", ["data_loader.args.pseudo", "'csv'"]),
        ("pseudo={csv: pseudo.csv, share: a lot}", ["data_loader.args.pseudo.share: ", "'a lot'"]),
        ("pseudo=pseudo.csv", ["data_loader.args.pseudo: ", "'pseudo.csv'"]),
        ("pseudo={csv: test.csv, share: 0.01}", ["data_loader", "pseudo.share: ", "which gives 0"]),
        ("pseudo={csv: train.csv, images: train_images}", ["pseudo.images: ", "labelled already"]),
        (
            "pseudo={csv: nothing.csv}",
            [
                "nothing.csv: no such CSV (keys data_dir and pseudo.csv)",
                ". Make it with sever pseudo, or train without it: -s data_loader.args.pseudo=null",
            ],
        ),
    ],
)
def test_a_mistake_in_the_config_is_one_message(config, setting, expected):
    message = mistake("train", "-c", config, "--dry-run", "-s", f"data_loader.args.{setting}")
    for part in expected:
        assert part in message


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    done("synth", folder / "data", "-n", "8", "--size", *map(str, SIZE))
    return write_config(folder / "c.yml", steel_config(folder / "data", folder / "saved"))
