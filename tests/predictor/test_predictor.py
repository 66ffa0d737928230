"""One model or several on sheets in files, with all that runs beside them."""

import multiprocessing
import os
import signal
import threading
import time
import weakref

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from sever.base import BaseModel, MasksAndLabels
from sever.data_loader.prediction_loader import PredictionDataLoader
from sever.predictor.ensemble import Member
from sever.predictor.predictor import Predictor
from sever.predictor.result_files import SubmissionTable, predict_to_files
from sever.predictor.submission.write import Layout
from sever.utils.errors import ConfigError, DataError, DeviceError

CPU = torch.device("cpu")
SHAPES = [(4, 6)] * 5 + [(6, 4)] * 2 + [(4, 6)] * 4
RAMP = torch.tensor([0.0, 1, 2, 3, 4, 5])


class Slopes(BaseModel):
    """Logits of two classes: the sheet times one slope each."""

    def __init__(self, *slopes):
        super().__init__()
        self.slopes = nn.Parameter(torch.tensor(slopes).view(1, -1, 1, 1))

    def forward(self, images):
        return images * self.slopes


class Constant(BaseModel):
    """The same probability everywhere."""

    def __init__(self, prob):
        super().__init__()
        self.logit = torch.tensor(prob).logit()

    def forward(self, images):
        return self.logit.expand(len(images), 1, *images.shape[-2:])


class Labels(Slopes):
    """Logits of two labels: the mean of the sheet times one slope each."""

    output_kinds = ("labels",)

    def forward(self, images):
        return super().forward(images).mean(dim=(2, 3))


class Both(Slopes):
    output_kinds = ("masks", "labels")

    def forward(self, images):
        masks = super().forward(images)
        return MasksAndLabels(masks, masks.mean(dim=(2, 3)))


class Sided(BaseModel):
    """Looks at where a pixel is: the logit is the sheet times the column's number."""

    def forward(self, images):
        return images * RAMP[: images.shape[-1]]


def centred(images):
    return images.float() / 100 - 1


def member(model):
    return Member(model, centred)


@pytest.fixture
def folder(tmp_path):
    """Eleven sheets of two sizes, in name order."""
    random = np.random.default_rng(0)
    path = tmp_path / "images"
    path.mkdir()
    for number, shape in enumerate(SHAPES):
        cv2.imwrite(str(path / f"{number:02d}.png"), random.integers(0, 256, shape, dtype=np.uint8))
    return path


@pytest.fixture(autouse=True)
def three_threads():
    """Of torch, so that sheets go side by side; and afterwards no thread is left."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    opencv = cv2.getNumThreads()
    yield
    until = time.monotonic() + 5
    while ours() and time.monotonic() < until:  # Ctrl-C may hit the pool just as it starts one
        time.sleep(0.01)
    assert ours() == []
    assert torch.get_num_threads() == 3
    assert cv2.getNumThreads() == opencv
    torch.set_num_threads(before)


def ours():
    """The running threads of the predictor."""
    return [t.name for t in threading.enumerate() if t.name.startswith(("reading", "sheet"))]


def loader(folder, **args):
    return PredictionDataLoader(folder, **{"batch_size": 2} | args)


def sigmoid(logits):
    return 1 / (1 + np.exp(-logits))


def logits_of(prediction, *slopes):
    grey = prediction.sheet.astype(np.float32) / 100 - 1
    return np.stack([grey * slope for slope in slopes])


@pytest.mark.parametrize("batch_size", [1, 3, 20])
def test_sheets_come_in_order_with_their_probabilities(folder, batch_size):
    data_loader = loader(folder, batch_size=batch_size)
    predictions = list(Predictor([member(Slopes(1.0, -2.0))], CPU).predict(data_loader))
    assert [p.number for p in predictions] == list(range(11))
    assert [p.sheet.shape for p in predictions] == SHAPES
    for name, p in zip(data_loader.sample_names, predictions, strict=True):
        np.testing.assert_array_equal(p.sheet, cv2.imread(str(folder / name), cv2.IMREAD_GRAYSCALE))
        assert p.probs.dtype == np.float32
        assert p.probs.flags.c_contiguous
        np.testing.assert_allclose(p.probs, sigmoid(logits_of(p, 1, -2)), rtol=1e-5)
        assert p.label_probs is None


def test_the_order_holds_where_the_first_sheets_take_longest(folder):
    def slow_first(prediction):
        time.sleep(0.05 if prediction.number < 2 else 0)
        return prediction.number

    predictor = Predictor([member(Slopes(1.0, 1.0))], CPU)
    assert list(predictor.map(slow_first, loader(folder))) == list(range(11))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_predictor_can_go_through_a_loader_again(folder, workers):
    predictor, data_loader = Predictor([member(Slopes(1.0, 1.0))], CPU), loader(folder, num_workers=workers)
    first, second = (list(predictor.predict(data_loader)) for _ in range(2))
    for one, two in zip(first, second, strict=True):
        np.testing.assert_array_equal(one.probs, two.probs)


@pytest.mark.parametrize(
    ("average", "weights", "expected"),
    [
        ("mean", None, 0.4),
        ("mean", [2, 1, 1], 0.35),
        ("rms", None, 0.45461),
        ("geometric", None, 0.34760),
        ("max", None, 0.7),
        ("vote", None, 1 / 3),
    ],
)
@pytest.mark.parametrize("at_once", [True, False])
def test_models_are_averaged(folder, average, weights, expected, at_once):
    members = [member(Constant(prob)) for prob in (0.2, 0.3, 0.7)]
    predictor = Predictor(members, CPU, average=average, weights=weights, at_once=at_once)
    for p in predictor.predict(loader(folder)):
        np.testing.assert_allclose(p.probs, np.full((1, *p.sheet.shape), expected), atol=6e-6)


def test_each_model_has_its_own_normalisation(folder):
    members = [Member(Slopes(1.0), centred), Member(Slopes(1.0), lambda images: images.float() / 50)]
    for p in Predictor(members, CPU).predict(loader(folder)):
        grey = p.sheet.astype(np.float32)
        expected = (sigmoid(grey / 100 - 1) + sigmoid(grey / 50)) / 2
        np.testing.assert_allclose(p.probs[0], expected, rtol=1e-5)


@pytest.mark.parametrize("at_once", [True, False])
def test_masks_and_labels_are_averaged_over_the_models_that_give_them(folder, at_once):
    members = [member(Slopes(1.0, -1.0)), member(Labels(2.0, 0.5)), member(Both(-1.0, 3.0))]
    predictor = Predictor(members, CPU, weights=[1, 1, 3], at_once=at_once)
    for p in predictor.predict(loader(folder)):
        masks = (sigmoid(logits_of(p, 1, -1)) + 3 * sigmoid(logits_of(p, -1, 3))) / 4
        np.testing.assert_allclose(p.probs, masks, rtol=1e-5)
        means = [logits_of(p, *slopes).mean(axis=(1, 2)) for slopes in ((2, 0.5), (-1, 3))]
        np.testing.assert_allclose(p.label_probs, (sigmoid(means[0]) + 3 * sigmoid(means[1])) / 4, rtol=1e-5)
        assert p.label_probs.dtype == np.float32


def test_classifiers_alone_give_labels_alone(folder):
    for p in Predictor([member(Labels(2.0, 0.5))], CPU).predict(loader(folder)):
        assert p.probs is None
        assert p.label_probs.shape == (2,)


def test_a_member_of_weight_0_is_left_out(folder):
    def load():
        raise AssertionError("it is not needed")

    predictor = Predictor([load, member(Labels(1.0, 1.0))], CPU, weights=[0, 1])
    assert all(p.probs is None for p in predictor.predict(loader(folder)))


FLIPPED = {"none": [()], "hflip": [(), (1,)], "vflip": [(), (0,)], "both": [(), (0,), (1,), (0, 1)]}


@pytest.mark.parametrize("tta", FLIPPED)
def test_flipped_predictions_are_turned_back_and_averaged_within_a_model(folder, tta):
    # The rule between models is another one; within each it is the mean.
    predictor = Predictor([member(Sided()), member(Constant(0.3))], CPU, tta=tta, average="rms")
    for p in predictor.predict(loader(folder)):
        grey = p.sheet / 100 - 1
        ramp = RAMP.numpy()[: grey.shape[1]]
        turned = [np.flip(sigmoid(np.flip(grey, axes) * ramp), axes) for axes in FLIPPED[tta]]
        expected = np.sqrt((np.mean(turned, axis=0) ** 2 + 0.09) / 2)
        np.testing.assert_allclose(p.probs[0], expected, rtol=1e-5)


def test_vertical_flips_and_both_are_not_the_same_as_horizontal_ones(folder):
    class Rows(BaseModel):
        def forward(self, images):
            return images * RAMP[: images.shape[-2], None] * RAMP[: images.shape[-1]]

    first = [next(Predictor([member(Rows())], CPU, tta=tta).predict(loader(folder))).probs for tta in FLIPPED]
    assert all(np.abs(one - two).max() > 0.01 for n, one in enumerate(first) for two in first[:n])


def test_labels_are_averaged_over_flips_too(folder):
    class LabelOfLeft(Labels):
        def forward(self, images):
            return super().forward(images[..., :1])

    for p in Predictor([member(LabelOfLeft(1.0))], CPU, tta="hflip").predict(loader(folder)):
        left, right = (logits_of(p, 1.0)[..., column].mean() for column in (0, -1))
        np.testing.assert_allclose(p.label_probs, [(sigmoid(left) + sigmoid(right)) / 2], rtol=1e-5)


class Convolution(BaseModel):
    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(1, 2, 3, padding=1)

    def forward(self, images):
        return self.layer(images)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_sixteen_bits_are_near_and_come_out_as_float32(folder, precision):
    torch.manual_seed(0)
    model = Convolution()
    full, half = (
        np.concatenate([p.probs.ravel() for p in Predictor([member(model)], CPU, precision=bits).predict(
            loader(folder))])
        for bits in ("fp32", precision)
    )  # fmt: skip
    assert half.dtype == np.float32
    assert 0 < np.abs(full - half).max() < 0.02


# ------------------------------------------------------------------------------------ one at a time


class Shelf:
    """Loads models, and knows which of them are still in memory."""

    def __init__(self, count):
        self.loads = []
        self.alive = []
        self.factories = [lambda n=n: self.load(n) for n in range(count)]

    def load(self, number):
        self.alive = [ref for ref in self.alive if ref() is not None]
        assert self.alive == [], "an earlier model is still in memory"
        torch.manual_seed(number)
        model = Convolution()
        self.loads.append(number)
        self.alive.append(weakref.ref(model))
        return member(model)


@pytest.mark.parametrize("average", ["mean", "rms", "geometric", "max", "vote"])
@pytest.mark.parametrize("tta", ["none", "both"])
def test_one_model_at_a_time_gives_the_same_numbers_to_the_bit(folder, average, tta):
    settings = {"weights": [0.7, 1, 0.2], "average": average, "tta": tta}
    together = [Shelf(1).load(n) for n in (0, 1, 2)]
    shelf = Shelf(3)
    apart = Predictor(shelf.factories, CPU, **settings, at_once=False, chunk_bytes=600)
    expected = list(Predictor(together, CPU, **settings).predict(loader(folder)))
    for one, two in zip(expected, apart.predict(loader(folder)), strict=True):
        np.testing.assert_array_equal(one.probs, two.probs)
    assert shelf.loads == [0, 1, 2] * 5


def test_chunks_hold_as_much_as_memory_may(folder):
    # A sheet of 24 pixels takes 24 bytes and twice 4 times 24 for two classes: 216. The first is a chunk of
    # its own, which shows that.
    shelf = Shelf(2)
    assert len(list(Predictor(shelf.factories, CPU, at_once=False).predict(loader(folder)))) == 11
    assert shelf.loads == [0, 1] * 2
    shelf = Shelf(2)
    predictor = Predictor(shelf.factories, CPU, at_once=False, chunk_bytes=4 * 216)
    assert len(list(predictor.predict(loader(folder)))) == 11
    assert shelf.loads == [0, 1] * 4  # 1 | 4 | 4 | 2


def test_models_that_do_not_fit_together_are_taken_one_at_a_time(folder, caplog):
    alive = []

    def load(number):
        if any(ref() is not None for ref in alive):
            raise torch.OutOfMemoryError("CUDA out of memory")
        model = Constant((0.2, 0.6)[number])
        alive.append(weakref.ref(model))
        return member(model)

    predictor = Predictor([lambda: load(0), lambda: load(1)], CPU)
    assert "do not fit into the GPU's memory together; taking one at a time" in caplog.text
    for p in predictor.predict(loader(folder)):
        np.testing.assert_allclose(p.probs, np.full((1, *p.sheet.shape), 0.4), rtol=1e-6)


def test_a_batch_that_does_not_fit_says_what_to_change(folder):
    class Large(BaseModel):
        def forward(self, images):
            raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(DeviceError, match=r"lower predict\.batch_size"):
        list(Predictor([member(Large())], CPU).predict(loader(folder)))


# ------------------------------------------------------------------------- mistakes, stops and bounds


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("at_once", [True, False])
def test_a_damaged_sheet_is_named(folder, workers, at_once, tmp_path):
    data_loader = loader(folder, num_workers=workers)
    whole = (folder / "08.png").read_bytes()
    (folder / "08.png").write_bytes(whole[: len(whole) // 2])
    predictor = Predictor([member(Slopes(1.0, 1.0))], CPU, at_once=at_once)
    output = tmp_path / "out" / "submission.csv"
    with pytest.raises(DataError, match=r"^[^\n]*08\.png[^\n]*$"):
        predict_to_files(predictor, data_loader, masks_of, [submission(output)])
    assert list(output.parent.iterdir()) == []


def submission(path):
    return SubmissionTable(path, Layout(), ["1", "2"])


def masks_of(probs, label_probs):
    return (probs > 0.5).astype(np.uint8)


def test_an_error_in_post_processing_comes_out_as_it_is(folder, tmp_path):
    def divided(probs, label_probs):
        raise ZeroDivisionError("by hand")

    predictor = Predictor([member(Slopes(1.0, 1.0))], CPU)
    with pytest.raises(ZeroDivisionError, match="by hand"):
        predict_to_files(predictor, loader(folder), divided, [submission(tmp_path / "s.csv")])
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


@pytest.mark.parametrize("workers", [0, 1])
def test_ctrl_c_ends_it_and_leaves_no_file(folder, tmp_path, workers):
    once = iter([signal.SIGINT])

    def stopped(probs, label_probs):
        for number in once:
            os.kill(os.getpid(), number)
        time.sleep(0.05)
        return masks_of(probs, label_probs)

    predictor = Predictor([member(Slopes(1.0, 1.0))], CPU)
    data_loader = loader(folder, num_workers=workers)
    children = set(multiprocessing.active_children())
    with pytest.raises(KeyboardInterrupt):
        predict_to_files(predictor, data_loader, stopped, [submission(tmp_path / "s.csv")])
    assert [path.name for path in tmp_path.iterdir()] == ["images"]
    assert set(multiprocessing.active_children()) <= children


def test_a_reader_that_stops_early_ends_all_threads(folder):
    predictions = Predictor([member(Slopes(1.0, 1.0))], CPU).predict(loader(folder, batch_size=1))
    assert next(predictions).number == 0
    assert "reading_0" in ours()
    predictions.close()  # the fixture looks for threads that are left


def test_few_sheets_are_under_way_however_slow_their_reader_is(folder):
    begun = []
    names = [f"{number:02d}.png" for number in range(5)] * 20
    predictor = Predictor([member(Slopes(1.0, 1.0))], CPU)
    for taken, _ in enumerate(predictor.map(begun.append, loader(folder, names=names)), 1):
        time.sleep(0.001)
        assert len(begun) - taken <= 6  # twice the threads
    assert taken == 100


# --------------------------------------------------------------------------------------- submissions


def test_a_submission_worked_by_hand(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for name, sheet in {"a.png": [[200, 0, 200], [200, 0, 0]], "b.png": [[100, 100, 100]]}.items():
        cv2.imwrite(str(folder / name), np.array(sheet, dtype=np.uint8))
    seen = []
    found = predict_to_files(
        Predictor([member(Slopes(1.0, -1.0))], CPU),
        PredictionDataLoader(folder, ["b.png", "a.png"]),
        masks_of,
        [submission(tmp_path / "s.csv")],
        [lambda prediction, masks: seen.append((prediction.number, int(masks.sum())))],
    )
    # b is all at a logit of 0, which is not above 0.5; a is 1 at 200 and -1 at 0.
    assert (tmp_path / "s.csv").read_text() == (
        "ImageId_ClassId,EncodedPixels\nb.png_1,\nb.png_2,\na.png_1,1 2 5 1\na.png_2,3 2 6 1\n"
    )
    assert found.tolist() == [1, 1]
    assert sorted(seen) == [(0, 0), (1, 6)]


def test_post_processing_is_given_the_labels(folder, tmp_path):
    def gated(probs, label_probs):
        assert label_probs.shape == (2,)
        return np.zeros(probs.shape, np.uint8)

    predictor = Predictor([member(Both(1.0, 1.0))], CPU)
    found = predict_to_files(predictor, loader(folder), gated, [submission(tmp_path / "s.csv")])
    assert found.tolist() == [0, 0]
    assert len((tmp_path / "s.csv").read_text().splitlines()) == 1 + 2 * len(SHAPES)


def test_classifiers_alone_write_no_submission(folder, tmp_path):
    predictor = Predictor([member(Labels(1.0, 1.0))], CPU)
    with pytest.raises(ConfigError, match="classifiers alone"):
        predict_to_files(predictor, loader(folder), masks_of, [submission(tmp_path / "s.csv")])
