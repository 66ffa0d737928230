"""What several processes find out together is what one finds, to the last bit."""

import os
from collections import Counter

import pytest
import torch
from in_processes import in_processes
from torch import nn
from torch.utils.data import Dataset

from sever.base import BaseDataLoader, BaseModel, Metric
from sever.model.loss import BCEDiceLoss
from sever.model.metric import FunctionMetric, dice, iou
from sever.parallel import collectives
from sever.parallel.collectives import gather_in_order
from sever.parallel.threads import in_threads
from sever.trainer.evaluate import Tally, evaluate, merged

CPU = torch.device("cpu")
CLASSES = ["1", "2", "3"]


class Sheets(Dataset):
    """Noise and masks of it, each of its own."""

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        noise = torch.rand(4, 8, 8, generator=torch.Generator().manual_seed(index))
        return noise[:1], (noise[1:] > 0.6).byte()


class OneLayer(BaseModel):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Conv2d(1, len(CLASSES), 3, padding=1)

    def forward(self, images):
        return 5 * self.layer(images)


class MeanArea(Metric):
    """A user's metric: it divides by the number of images, and keeps what it saw in order."""

    def __init__(self, names=()):
        self.of_batch = list(names)
        self.reset()

    def reset(self):
        self.area = torch.zeros(())
        self.images = 0
        self.names = []

    def update(self, probs, targets):
        self.area = self.area + probs.sum() / 3
        self.images += len(probs)
        self.names += self.of_batch

    def merge(self, other):
        self.area = self.area + other.area
        self.images += other.images
        self.names += other.names

    def compute(self):
        return {"area": self.area.item() / self.images, "last": float(self.names[-1])}


def spread_of(probs, targets):
    return (probs.amax((1, 2, 3)) - targets.float().mean((1, 2, 3))).mean().item()


def metrics_of(names):
    return [dice(CLASSES), iou(CLASSES), FunctionMetric(spread_of, "spread"), MeanArea(names)]


def evaluated(sheets, batch_size, workers=0, lockstep=False):
    """All scores, the names in the order in which they were counted, and how often it asked to go on."""
    loader = BaseDataLoader(Sheets(sheets), batch_size, num_workers=workers)
    asked = []
    tally = evaluate(
        OneLayer(),
        loader,
        BCEDiceLoss(),
        metrics_of,
        CPU,
        before_batch=(lambda: asked.append(1)) if lockstep else None,
    )
    scores = tally.compute_together()
    return scores, tally.metrics[-1].names, len(asked)


# ------------------------------------------------------------------------------------------ evaluation


@pytest.mark.parametrize("processes", [2, 3])
def test_scores_over_processes_are_those_of_one_to_the_last_bit(processes):
    scores, names, asked = evaluated(20, 3, lockstep=True)
    assert names == [str(index) for index in range(20)]
    assert {"loss", "bce_loss", "dice_mean", "iou_3", "spread", "area"} <= scores.keys()
    assert asked == 7
    first, *others = in_processes(processes, evaluated, 20, 3, 0, True)
    # All ask as often, so that a stop is agreed on before each round of batches
    assert first == (scores, names, -(-7 // processes))
    assert [other[0] for other in others] == [scores] * (processes - 1)
    assert [other[2] for other in others] == [-(-7 // processes)] * (processes - 1)


@pytest.mark.parametrize("workers", [0, 1])
def test_processes_without_a_batch_leave_the_scores_as_they_are(workers):
    scores, names, _ = evaluated(4, 3)
    first, second, third = in_processes(3, evaluated, 4, 3, workers)
    assert first[:2] == (scores, names)
    assert second[0] == third[0] == scores


def test_a_stop_that_one_process_is_told_of_is_agreed_on_in_the_same_round():
    def stopped():
        rounds = []

        def look():
            rounds.append(1)
            # the signal reaches the last process alone, before its second batch
            told = collectives.world().rank == 2 and len(rounds) == 2
            if collectives.on_any_rank(told):
                raise KeyboardInterrupt

        loader = BaseDataLoader(Sheets(20), 3)
        try:
            evaluate(OneLayer(), loader, None, lambda _: [], CPU, before_batch=look)
        except KeyboardInterrupt:
            return len(rounds)
        return None

    assert in_processes(3, stopped) == [2, 2, 2]


def counted_in_training():
    """Each of three processes counts its parts of two batches; the last one has no image of them."""
    rank = collectives.world().rank
    area = MeanArea()
    tally = Tally([area], finite_only=True)
    for value, images in [[(1.0, 3), (0.5, 2)], [(2.0, 2), (float("nan"), 1)], []][rank]:
        area.of_batch = [str(rank)]
        probs = torch.full((images, 1, 1, 3), value)
        tally.update({"loss": torch.tensor(value)}, probs, torch.zeros(images), images)
    log = merged([tally], tally.empty_copy()).compute_together()
    return {key: value for key, value in log.items() if key != "area"}


def test_what_was_counted_in_training_is_added_up():
    # (3·1 + 2·0.5 + 2·2) / 7, without what is not finite
    assert in_processes(3, counted_in_training) == [{"loss": 8 / 7, "last": 1.0}] * 3


# -------------------------------------------------------------------------------------- work in turn


def in_turn(counts):
    world = collectives.world()
    results = []
    for count in counts:
        own = ([number, number * number] for number in range(world.rank, count, world.size))
        results.append(list(gather_in_order(own, count)))
    return results


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_groups_that_were_dealt_out_come_back_in_their_order(processes):
    counts = [0, 1, 2, 3, 6, 7]
    expected = [[[number, number * number] for number in range(count)] for count in counts]
    first, *others = in_processes(processes, in_turn, counts)
    assert first == expected
    assert others == [[[]] * len(counts)] * (processes - 1)


def test_a_group_may_be_empty():
    def empty_groups():
        world = collectives.world()
        groups = [[1], [], [], [2, 3], []]
        return list(gather_in_order(iter(groups[world.rank :: world.size]), 5))

    assert in_processes(2, empty_groups) == [[[1], [], [], [2, 3], []], []]


def squared_in_threads(counts):
    """What was made of each number, and by which process."""
    return [list(in_threads(lambda n: (n * n, os.getpid()), range(count))) for count in counts]


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_work_in_threads_is_shared_and_all_get_all_results(processes):
    counts = [0, 1, 64, 65, 300]
    results = in_processes(processes, squared_in_threads, counts)
    assert results == [results[0]] * processes
    for count, found in zip(counts, results[0], strict=True):
        assert [square for square, _ in found] == [number**2 for number in range(count)]
        workers = Counter(pid for _, pid in found)
        blocks = -(-count // 64)  # of 64 items
        assert len(workers) == min(blocks, processes)
        assert max(workers.values(), default=0) <= 64 * -(-blocks // processes)


def test_a_process_that_joined_nobody_works_alone_whatever_a_launcher_says(monkeypatch):
    for name, value in {"RANK": 1, "LOCAL_RANK": 1, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}.items():
        monkeypatch.setenv(name, str(value))
    assert [square for square, _ in squared_in_threads([100])[0]] == [number**2 for number in range(100)]
