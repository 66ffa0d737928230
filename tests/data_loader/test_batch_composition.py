"""Batches balanced by class: what each holds, what an epoch holds, and that it can be repeated."""

import shutil
from collections import Counter
from itertools import chain

import numpy as np
import pytest
import torch
from runs import SIZE, done, mistake, run_folder, steel_config, write_config
from sheets import OF_2019, draw_data, draw_images, numbered

from sever.data_loader.augmentation.pipelines import HeavyCropTransforms, RandomCropTransforms
from sever.data_loader.batch_composition import balanced_shares, kinds_of, whole_counts
from sever.data_loader.data_loaders import SteelSegDataLoader
from sever.utils.errors import DataError

# 40 images: class 1 is in 14, class 2 in 6, class 3 in 2, so the kinds (rarest classes) are clean 20, 1: 12,
# 2: 6, 3: 2, and their shares 0.5, 0.3, 0.15, 0.05.
IMAGES = numbered([(20, ()), (12, (1,)), (4, (2,)), (2, (1, 2)), (2, (3,))])
KINDS = np.repeat(["clean", "1", "2", "3"], [20, 12, 6, 2])


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = draw_data(tmp_path_factory.mktemp("balance"), IMAGES)
    names = [f"p{index:02d}.png" for index in range(10)]
    draw_images(folder / "test_images", names, grey=200)
    (folder / "pseudo.csv").write_text(OF_2019 + "".join(f"{name}_1,1 2\n" for name in names))
    return folder


def loader_of(data_dir, balance, **args):
    args = {"batch_size": 8, "validation_split": 0, "seed": 5} | args
    return SteelSegDataLoader(
        str(data_dir), classes=3, augmentation=HeavyCropTransforms(8, 8), balance=balance, **args
    )


def batches_of(loader, epoch):
    loader.set_epoch(epoch)
    return list(loader.batch_sampler)


def counted(batch):
    counts = Counter(KINDS[batch].tolist())
    return [counts[kind] for kind in ("clean", "1", "2", "3")]


@pytest.mark.parametrize(
    ("alpha", "batch_size", "expected"),
    [
        (0.0, 8, [4, 2, 1, 1]),  # 4, 2.4, 1.2, 0.4: of equal remainders the smaller share's
        (0.5, 8, [3, 2, 2, 1]),  # 3, 2.2, 1.6, 1.2
        (1.0, 8, [2, 2, 2, 2]),
        (-1.0, 23, [15, 7, 1, 0]),  # 0.75, 0.35, 0.05 and -0.15: 15, 7 and 1 of 23
    ],
)
def test_fixed_batches_all_have_the_same_counts(data_dir, alpha, batch_size, expected):
    loader = loader_of(data_dir, {"alpha": alpha, "kind": "fixed"}, batch_size=batch_size)
    batches = batches_of(loader, 1) + batches_of(loader, 2)
    assert [counted(batch) for batch in batches] == [expected] * (2 * len(loader))


def test_random_batches_follow_the_shares_over_many_epochs(data_dir):
    loader = loader_of(data_dir, {"alpha": 0.5, "kind": "random"})
    batches = [batch for epoch in range(200) for batch in batches_of(loader, epoch)]
    assert {len(batch) for batch in batches} == {8}
    counts = np.array([counted(batch) for batch in batches])
    np.testing.assert_allclose(counts.mean(axis=0) / 8, [0.375, 0.275, 0.2, 0.15], atol=0.02)
    # The number of clean images in a batch is binomial: 8 * 0.375 * 0.625 is its variance.
    assert counts[:, 0].var() == pytest.approx(1.875, rel=0.2)


@pytest.mark.parametrize(
    ("counts", "alpha", "expected"),
    [
        ([6, 2], 0.0, [0.75, 0.25]),
        ([6, 2], 1.0, [0.5, 0.5]),
        ([6, 2], -0.5, [0.875, 0.125]),  # 1.5 p - 0.5 u
        ([6, 2], -2.0, [1.0, 0.0]),  # 1.25 and -0.25
        ([5, 4, 1], -0.5, [0.6, 0.4, 0.0]),  # 0.75 - 1/6, 0.6 - 1/6, 0.15 - 1/6; see below
        ([3, 0, 1], 1.0, [0.5, 0.0, 0.5]),
        ([0, 0], 0.5, [0.0, 0.0]),
    ],
)
def test_shares_worked_by_hand(counts, alpha, expected):
    if counts == [5, 4, 1]:  # 7/12 and 13/30 of what is left
        expected = [35 / 61, 26 / 61, 0.0]
    np.testing.assert_allclose(balanced_shares(np.array(counts), alpha), expected, atol=1e-12)


@pytest.mark.parametrize(
    ("shares", "total", "expected"),
    [
        ([0.29, 0.71], 100, [29, 71]),
        ([1 / 3, 1 / 3, 1 / 3], 3, [1, 1, 1]),
        ([0.5, 0.3, 0.2], 7, [4, 2, 1]),  # 3.5, 2.1, 1.4
        ([0.6, 0.4], 0, [0, 0]),
    ],
)
def test_places_are_given_by_largest_remainder(shares, total, expected):
    assert whole_counts(np.array(shares), total).tolist() == expected


def test_an_image_belongs_to_its_rarest_class():
    present = np.array([[1, 1, 0], [1, 0, 0], [0, 1, 1], [0, 1, 0], [0, 0, 0]], dtype=bool)
    # Class 3 is in one image, class 1 in two, class 2 in three.
    assert kinds_of(present).tolist() == [0, 0, 2, 1, 3]


def test_kinds_are_counted_among_the_training_images_alone(data_dir):
    loader = loader_of(data_dir, {"alpha": 1.0}, batch_size=2, validation_split=0.5)
    # Left for training: both images of classes 1 and 2, two of class 2 alone, one of class 1 alone. So
    # class 1 is in 3 images and class 2 in 4: class 1 is the rarer one here, and class 3 is not there.
    training = ["036.png", "037.png", "032.png", "033.png", "020.png"]
    loader.split_validation({"training": training, "validation": sorted(set(IMAGES) - set(training))})
    of_class_1 = {20, 36, 37}
    for batch in batches_of(loader, 1):
        assert sorted(index in of_class_1 for index in batch) == [False, True]
    assert len(loader) == 3  # 5 images, 2 a batch
    assert sorted(loader.indices) == [20, 32, 33, 36, 37]


@pytest.mark.parametrize("kind", ["fixed", "random"])
def test_within_a_kind_no_image_comes_again_before_all_have_come(data_dir, kind):
    loader = loader_of(data_dir, {"alpha": 0.5, "kind": kind})
    loader.split_validation(None)
    for epoch in (1, 2):
        drawn = np.array(list(chain.from_iterable(batches_of(loader, epoch))))
        for name in ("clean", "1", "2", "3"):
            counts = np.bincount(drawn, minlength=40)[name == KINDS]
            assert counts.max() - counts.min() <= 1


def test_rounds_are_carried_over_from_batch_to_batch(data_dir):
    loader = loader_of(data_dir, {"alpha": 0.5}, batch_size=8)
    of_class_3 = [index for batch in batches_of(loader, 1) for index in batch if index >= 38]
    assert len(of_class_3) == 5  # one in each batch, of two images
    assert sorted(of_class_3[:2]) == sorted(of_class_3[2:4]) == [38, 39]


@pytest.mark.parametrize(("drop_last", "expected"), [(False, 4), (True, 3)])
def test_an_epoch_has_as_many_batches_as_without_balance_and_all_are_full(data_dir, drop_last, expected):
    balanced = loader_of(data_dir, {"alpha": 0.5}, batch_size=12, drop_last=drop_last)
    plain = loader_of(data_dir, None, batch_size=12, drop_last=drop_last)
    assert len(balanced) == len(plain) == expected
    assert [len(batch) for batch in batches_of(balanced, 1)] == [12] * expected


def test_batches_depend_on_seed_and_epoch_alone(data_dir):
    balance = {"alpha": 0.5, "kind": "random"}
    loader = loader_of(data_dir, balance)
    first, second = batches_of(loader, 1), batches_of(loader, 2)
    assert first != second
    assert batches_of(loader, 1) == first
    assert batches_of(loader_of(data_dir, balance), 2) == second
    assert batches_of(loader_of(data_dir, balance, seed=6), 1) != first
    places = Counter(KINDS[batch[0]] for epoch in range(40) for batch in batches_of(loader, epoch))
    assert set(places) == {"clean", "1", "2", "3"}  # kinds are mixed within a batch


@pytest.mark.parametrize("workers", [1, 2])
def test_any_number_of_workers_gives_the_same_samples(data_dir, workers):
    args = {"pseudo": {"csv": "pseudo.csv", "share": 0.25}, "batch_size": 8}
    alone = loader_of(data_dir, {"alpha": 0.5}, **args)
    helped = loader_of(data_dir, {"alpha": 0.5}, **args, num_workers=workers)
    for epoch in (1, 2, 1):
        alone.set_epoch(epoch)
        helped.set_epoch(epoch)
        pairs = list(zip(alone, helped, strict=True))
        assert len(pairs) == len(alone) == 7  # 40 images, 6 labelled ones a batch
        for one, other in pairs:
            assert torch.equal(one[0], other[0])
            assert torch.equal(one[1], other[1])


def test_samples_per_epoch_are_those_of_the_first_epoch(data_dir):
    loader = loader_of(data_dir, {"alpha": 0.5}, pseudo={"csv": "pseudo.csv", "share": 0.25}, batch_size=10)
    # 8 labelled places: 3, 2, 2, 1 by kind; 5 batches for 40 images; 2 pseudo-labelled ones in each.
    loader.set_epoch(4)
    counts = loader.samples_per_epoch()
    assert batches_of(loader, 4) == list(loader.batch_sampler)
    drawn = Counter(chain.from_iterable(batches_of(loader, 1)))
    of_classes_1_and_2 = drawn[36] + drawn[37]
    assert counts == {"1": 10 + of_classes_1_and_2, "2": 10, "3": 5, "clean": 15, "pseudo": 10}

    plain = loader_of(data_dir, None, batch_size=12)
    assert plain.samples_per_epoch() == {"1": 14, "2": 6, "3": 2, "clean": 20}
    dropped = loader_of(data_dir, None, batch_size=12, drop_last=True)
    first = np.array(list(chain.from_iterable(batches_of(dropped, 1))))
    assert len(first) == 36
    assert dropped.samples_per_epoch()["clean"] == (first < 20).sum()


def test_fixed_batches_that_are_too_small_for_a_kind_are_refused(data_dir):
    loader = loader_of(data_dir, {"alpha": -0.1}, batch_size=4)  # 0.525, 0.305, 0.14 and 0.03 of 4
    expected = r"args\.balance: a batch of 4 .* no place for class 3, whose share in it is 0\.03 "
    with pytest.raises(DataError, match=expected):
        loader.split_validation()
    with pytest.raises(DataError, match=expected):
        next(iter(loader))
    random = loader_of(data_dir, {"alpha": -0.1, "kind": "random"}, batch_size=4)
    random.split_validation()
    assert len(batches_of(random, 1)) == 10


@pytest.mark.parametrize(
    ("balance", "args", "expected"),
    [
        ({"alpha": 1.5}, {}, r"balance\.alpha: expected a number up to 1, received 1\.5"),
        ({"alpha": float("nan")}, {}, r"balance\.alpha: expected a number up to 1, received nan"),
        ({"alpha": 0.5, "kind": "fix"}, {}, r"balance\.kind: expected fixed or random, received fix"),
        ({"alpha": 0.5}, {"batch_size": 0}, "batch_size must be at least 1, received 0"),
        ({"alpha": 0.5}, {"shuffle": False}, "shuffle: expected true beside balance"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(data_dir, balance, args, expected):
    with pytest.raises(ValueError, match=expected):
        loader_of(data_dir, balance, **args)


# ------------------------------------------------------------------------- through the command line


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A run of 2 epochs with balanced batches and pseudo-labels."""
    folder = tmp_path_factory.mktemp("run")
    done("synth", folder / "data", "-n", "16", "--size", *map(str, SIZE))
    names = sorted(path.name for path in (folder / "data" / "test_images").iterdir())
    rows = [f"{name}_{c},{'1 40' if c == 3 else ''}\n" for name in names for c in (1, 2, 3, 4)]
    (folder / "data" / "pseudo.csv").write_text(OF_2019 + "".join(rows))
    values = steel_config(folder / "data", folder / "saved")
    values["data_loader"]["args"] |= {
        "batch_size": 6,
        "balance": {"alpha": 0.6, "kind": "random"},
        "pseudo": {"csv": "pseudo.csv", "images": "test_images", "share": 0.3, "rate": 0.5},
    }
    values["training"] |= {"epochs": 2, "monitor": "off"}
    return write_config(folder / "mixed.yml", values)


def test_a_resumed_run_sees_the_batches_of_one_that_was_never_stopped(config, tmp_path):
    straight = run_folder(done("train", "-c", config, "-s", f"save_dir={tmp_path}"))
    stopped = shutil.copytree(straight, tmp_path / "stopped" / straight.name)
    (stopped / "checkpoint_epoch_2.pth").unlink()
    workers = ["-s", "data_loader.args.num_workers=2"]
    assert "epoch 2/2" in done("train", "-r", stopped / "checkpoint_epoch_1.pth", *workers)
    first, second = (
        torch.load(run / "checkpoint_epoch_2.pth", weights_only=True)["state_dict"]
        for run in (straight, stopped)
    )
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("balance={alhpa: 0.5}", ["data_loader.args.balance: ", "'alhpa'", "Did you mean 'alpha'?"]),
        ("balance={kind: fixed}", ["data_loader.args.balance", "'alpha'"]),
        (
            "balance={alpha: 0.5, kind: fix}",
            ["data_loader.args.balance.kind: ", "'fixed' or 'random'", "'fix'"],
        ),
        ("balance={alpha: much}", ["data_loader.args.balance.alpha: ", "number", "'much'"]),
        ("balance={alpha: 2}", ["data_loader", "balance.alpha: expected a number up to 1, received 2"]),
        ("balance={alpha: 0.1, kind: fixed}", ["data_loader.args.balance: ", "no place", "class"]),
        ("shuffle=false", ["shuffle: expected true"]),
    ],
)
def test_a_mistake_in_the_config_is_one_message(config, setting, expected):
    message = mistake("train", "-c", config, "--dry-run", "-s", f"data_loader.args.{setting}")
    for part in expected:
        assert part in message


def test_an_image_that_comes_again_is_not_cut_and_augmented_alike(tmp_path):
    done("synth", tmp_path, "-n", "12", "--size", "64", "128")
    loader = SteelSegDataLoader(
        str(tmp_path),
        batch_size=8,
        validation_split=0,
        balance={"alpha": 1.0, "kind": "random"},
        augmentation=RandomCropTransforms(32, 32),
        seed=5,
    )
    indices = list(chain.from_iterable(loader.batch_sampler))
    repeated = [place for place, index in enumerate(indices) if indices.count(index) > 1]
    images = list(chain.from_iterable(images for images, _ in loader))
    assert len(repeated) > 3
    assert len({image.numpy().tobytes() for image in images}) == len(images)
    again = list(chain.from_iterable(images for images, _ in loader))
    assert all(torch.equal(one, other) for one, other in zip(images, again, strict=True))
