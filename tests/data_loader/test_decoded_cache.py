"""Images that are decoded once: the same samples, from a file that is whole and up to date, or from none."""

import os
import pickle
import re
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from in_processes import in_processes
from runs import done, mistake, run_folder, steel_config, synthetic_sheets, write_config
from same_run import weights_of
from sheets import TODAY, draw_data, draw_images

from sever.data_loader import decoded_cache
from sever.data_loader.augmentation.pipelines import HeavyCropTransforms, LightTransforms
from sever.data_loader.data_loaders import SteelSegDataLoader
from sever.parallel import collectives
from sever.utils.errors import ConfigError, DataError, SeverError, StorageError

KINDS = ["ram", "disk"]


@pytest.fixture(scope="module")
def sheets(tmp_path_factory):
    return synthetic_sheets(tmp_path_factory.mktemp("cached") / "data")


@pytest.fixture
def odd(tmp_path):
    """Labelled images of sizes from 1 x 1 to larger than a crop, and pseudo-labelled ones."""
    data = draw_data(tmp_path / "odd", {})
    random = np.random.default_rng(0)
    for number, size in enumerate([(1, 1), (1, 40), (40, 1), (30, 50), (16, 24), (17, 100)]):
        pixels = random.integers(0, 256, size, dtype=np.uint8)
        cv2.imwrite(str(data / "train_images" / f"{number}.png"), pixels)
    draw_images(data / "test_images", ["p.png"], (30, 40), grey=90)
    (data / "pseudo.csv").write_text(TODAY + "p.png,1,3 9\n")
    (data / "train.csv").write_text(TODAY + "3.png,1,3 9\n5.png,2,100 900\n")
    return data


def loader_of(data, tmp_path, cache, **args):
    args = {"augmentation": HeavyCropTransforms(16, 24), "batch_size": 3, "validation_split": 0} | args
    return SteelSegDataLoader(
        str(data), cache=cache, default_cache_dir=str(tmp_path / "cache"), classes=4, seed=7, **args
    )


def samples_of(loader, epochs=2):
    batches = []
    for epoch in range(1, epochs + 1):
        loader.set_epoch(epoch)
        batches += [(images.clone(), masks.clone()) for images, masks in loader]
    loader.end_workers()
    return batches


def assert_same(one, other):
    assert len(one) == len(other) > 0
    for batch, same in zip(one, other, strict=True):
        assert all(torch.equal(*pair) for pair in zip(batch, same, strict=True))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("workers", [0, 2])
def test_samples_are_the_same_bit_for_bit(odd, tmp_path, kind, workers):
    more = {"pseudo": {"csv": "pseudo.csv", "share": 0.4}, "num_workers": workers}
    loader = loader_of(odd, tmp_path, kind, **more)
    assert_same(samples_of(loader_of(odd, tmp_path, "off", **more)), samples_of(loader))
    assert all(cache.is_built for cache in loader.caches)


@pytest.mark.parametrize("kind", KINDS)
def test_whole_sheets_and_validation_come_out_of_it_too(sheets, tmp_path, kind, monkeypatch):
    more = {"augmentation": LightTransforms(), "validation_split": 0.25}
    plain, cached = (loader_of(sheets, tmp_path, cache, **more) for cache in ("off", kind))
    held_out = plain.split_validation(), cached.split_validation()
    assert_same(samples_of(plain), samples_of(cached))
    expected = samples_of(held_out[0], 1)
    monkeypatch.setattr("sever.data_loader.annotations.read_grey", None)  # nothing decodes any more
    assert_same(expected, samples_of(held_out[1], 1))


def test_a_worker_that_is_started_anew_maps_the_same_images(sheets, tmp_path):
    loader = loader_of(sheets, tmp_path, "ram")
    samples_of(loader, 1)
    copy = pickle.loads(pickle.dumps(loader.table))
    assert np.array_equal(copy.image(3), loader.table.image(3))
    assert not copy.image(3).flags.writeable


def test_a_later_run_decodes_nothing(sheets, tmp_path, monkeypatch):
    expected = samples_of(loader_of(sheets, tmp_path, "disk"))
    for place in ("annotations.read_grey", "image_files.is_damaged", "decoded_cache.read_grey"):
        monkeypatch.setattr(f"sever.data_loader.{place}", None)
    assert_same(expected, samples_of(loader_of(sheets, tmp_path, "disk")))


def file_of(tmp_path):
    (path,) = (tmp_path / "cache").iterdir()
    return path


def cut(path):
    os.truncate(path, path.stat().st_size - 1)


def emptied(path):
    path.write_bytes(b"")


def points_beyond_its_end(path):
    content = path.read_bytes()
    path.write_bytes(content[100_000:])


@pytest.mark.parametrize("damage", [cut, emptied, points_beyond_its_end, os.unlink])
def test_a_file_that_is_not_whole_is_written_anew(sheets, tmp_path, damage):
    expected = samples_of(loader_of(sheets, tmp_path, "disk"))
    whole = file_of(tmp_path).read_bytes()
    damage(file_of(tmp_path))
    assert_same(expected, samples_of(loader_of(sheets, tmp_path, "disk")))
    assert file_of(tmp_path).read_bytes() == whole


def test_a_changed_image_is_decoded_anew(odd, tmp_path):
    path = odd / "train_images" / "3.png"
    before = path.stat()
    samples_of(loader_of(odd, tmp_path, "disk"))
    cv2.imwrite(str(path), 255 - cv2.imread(str(path), cv2.IMREAD_GRAYSCALE))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert_same(samples_of(loader_of(odd, tmp_path, "off")), samples_of(loader_of(odd, tmp_path, "disk")))


def test_images_of_two_folders_have_two_files(sheets, odd, tmp_path):
    for data in (sheets, odd):
        samples_of(loader_of(data, tmp_path, "disk"), 1)
    assert len(list((tmp_path / "cache").iterdir())) == 2


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_that_changes_before_the_first_epoch_is_named(odd, tmp_path, kind):
    loader = loader_of(odd, tmp_path, kind)
    cv2.imwrite(str(odd / "train_images" / "4.png"), np.zeros((16, 24), np.uint8))
    with pytest.raises(DataError, match=r"4\.png: was changed since the start"):
        iter(loader)
    assert not list(tmp_path.glob("cache/*"))


def test_a_damaged_image_is_refused_whatever_a_lenient_run_has_left(sheets, tmp_path):
    data = tmp_path / "data"
    (data / "train_images").mkdir(parents=True)
    for path in (sheets / "train_images").iterdir():
        (data / "train_images" / path.name).write_bytes(path.read_bytes())
    (data / "train.csv").write_text(TODAY)
    broken = min((data / "train_images").iterdir())
    content = bytearray(broken.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 200] = bytes(200)
    broken.write_bytes(content)
    samples_of(loader_of(data, tmp_path, "disk", damaged="warn"), 1)
    with pytest.raises(DataError, match=broken.name):
        loader_of(data, tmp_path, "disk")


def test_a_disk_that_fails_leaves_nothing(sheets, tmp_path, monkeypatch):
    def refused(file):
        raise OSError(28, "No space left on device")

    loader = loader_of(sheets, tmp_path, "disk")
    monkeypatch.setattr(os, "fsync", refused)
    with pytest.raises(StorageError, match="No space left"):
        iter(loader)
    assert not list((tmp_path / "cache").iterdir())


def test_what_does_not_fit_is_refused_by_the_plan(sheets, tmp_path, monkeypatch):
    config = steel_config(sheets, tmp_path / "saved")
    path = write_config(tmp_path / "c.yml", config)
    monkeypatch.setattr(decoded_cache, "_free_memory", lambda: 2**30 + 1000)
    message = mistake("train", "-c", path, "--dry-run", "-s", "data_loader.args.cache=ram")
    assert "cache: the 16 images" in message
    assert "1,000 are free in memory; choose data_loader.args.cache: disk, or off" in message
    monkeypatch.setattr(decoded_cache.shutil, "disk_usage", lambda _: SimpleNamespace(free=5))
    message = mistake("train", "-c", path, "--dry-run", "-s", "data_loader.args.cache=disk")
    assert f"5 are free in {tmp_path}; choose another data_loader.args.cache_dir" in message


def test_processes_of_a_machine_share_it(sheets, tmp_path):
    def read(kind):
        loader = loader_of(sheets, tmp_path, kind)
        if collectives.world().rank:
            decoded_cache.read_grey = None  # in this forked process: the main one decodes for all
        iter(loader)
        return [image.sum() for image in map(loader.table.image, range(16))]

    expected = [image.sum() for image in map(loader_of(sheets, tmp_path, "off").table.image, range(16))]
    for kind in KINDS:
        assert in_processes(2, read, kind) == [expected, expected]


def test_where_one_process_cannot_decode_all_end(odd, tmp_path):
    def read():
        loader = loader_of(odd, tmp_path, "disk")
        loader.caches[0].names[4] = "gone.png"
        try:
            iter(loader)
        except SeverError as error:
            return type(error).__name__

    assert in_processes(2, read) == ["DataError", "ElsewhereError"]


def test_a_run_with_a_cache_ends_as_one_without_and_the_command_removes_it(sheets, tmp_path):
    config = steel_config(sheets, tmp_path / "saved")
    path = write_config(tmp_path / "c.yml", config)
    cached = ["-s", "data_loader.args.cache=disk"]
    plan = done("train", "-c", path, "--dry-run", *cached)
    assert re.search(r"cache +0\.\d MB of decoded images in", plan)
    assert "decoded before the first epoch" in plan
    assert not (tmp_path / "saved").exists()
    plain = run_folder(done("train", "-c", path))
    output = done("train", "-c", path, *cached, "-s", "data_loader.args.num_workers=2")
    weights, same = weights_of(plain), weights_of(run_folder(output))
    assert all(torch.equal(weights[name], same[name]) for name in weights)
    assert "there already" in done("train", "-c", path, "--dry-run", *cached)

    (kept,) = (tmp_path / "saved" / "cache").iterdir()
    other = kept.with_name("notes.images")
    other.write_text("mine")
    assert done("cache", "-c", path) == f"{kept}  {kept.stat().st_size:,} bytes\n"
    assert done("cache", "-c", path, "--remove").endswith("bytes, removed\n")
    assert done("cache", "-c", path) == f"{kept.parent}: no decoded images\n"
    assert other.read_text() == "mine"


def test_nothing_is_written_where_a_checkpoint_says(sheets, tmp_path):
    config = steel_config(sheets, tmp_path / "saved")
    config["training"]["epochs"] = 1
    run = run_folder(done("train", "-c", write_config(tmp_path / "c.yml", config)))
    (tmp_path / "other" / "small").mkdir(parents=True)
    checkpoint = run.rename(tmp_path / "other" / "small" / "run") / "checkpoint_last.pth"
    state = torch.load(checkpoint, weights_only=True)
    victim = tmp_path / "victim"
    state["config"]["data_loader"]["args"] |= {"cache": "disk", "cache_dir": str(victim)}
    state["config"]["save_dir"] = str(victim)
    torch.save(state, checkpoint)
    output = done("train", "-r", checkpoint, "-s", "training.epochs=2")
    assert "-s data_loader.args.cache_dir names another" in output
    assert len(list((tmp_path / "other" / "cache").iterdir())) == 1
    done("average", "--recompute-batch-norm", "-o", tmp_path / "m.pth", "-r", checkpoint)
    done("test", "-s", "testing=null", "-r", checkpoint)
    assert not victim.exists()


def test_a_word_that_is_no_kind_of_cache_is_named(sheets, tmp_path):
    path = write_config(tmp_path / "c.yml", steel_config(sheets, tmp_path / "saved"))
    assert "data_loader.args.cache" in mistake("train", "-c", path, "-s", "data_loader.args.cache=rom")


def test_the_memory_that_is_left_is_that_of_the_container(tmp_path, monkeypatch):
    (tmp_path / "memory.max").write_text("5000\n")
    (tmp_path / "memory.current").write_text("1000\n")
    monkeypatch.setattr(decoded_cache, "_CGROUP", tmp_path)
    assert decoded_cache._free_memory() == 4000
    (tmp_path / "memory.max").write_text("max\n")
    assert decoded_cache._free_memory() > 2**20


def test_without_memfd_the_disk_is_advised(sheets, tmp_path, monkeypatch):
    monkeypatch.delattr(os, "memfd_create")
    with pytest.raises(ConfigError, match="ram is for Linux; take disk"):
        iter(loader_of(sheets, tmp_path, "ram"))
