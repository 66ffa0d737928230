"""What processes get of batches: a shard of each, or each of some; together they are those of one process."""

from itertools import chain, zip_longest

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from in_processes import in_processes
from sheets import OF_2019, draw_data, draw_images, numbered
from torch.utils.data import Dataset

from sever.base import BaseDataLoader
from sever.data_loader.augmentation.pipelines import HeavyCropTransforms
from sever.data_loader.data_loaders import SteelSegDataLoader
from sever.parallel import collectives
from sever.parallel.sharded_batch import Shard
from sever.utils.errors import DataError, ElsewhereError

# ------------------------------------------------------------------------------------ shards of batches


@settings(max_examples=150, derandomize=True, deadline=None, database=None)
@given(st.integers(0, 200), st.integers(1, 40))
def test_the_shards_of_a_batch_lie_side_by_side_and_differ_by_one_image_at_most(whole, processes):
    shards = [Shard.of(whole, rank, processes) for rank in range(processes)]
    end = 0
    for shard in shards:
        assert (shard.first, shard.whole) == (end, whole)
        end += shard.images
    assert end == whole
    sizes = [shard.images for shard in shards]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] - sizes[-1] <= 1


def test_five_images_on_two_processes_are_three_and_two():
    assert [Shard.of(5, rank, 2) for rank in (0, 1)] == [Shard(0, 3, 5), Shard(3, 2, 5)]
    assert Shard.of(5, 0, 1).weight == 1


def weights_of_shards(whole):
    return Shard.of(whole, collectives.world().rank, collectives.world_size()).weight


def test_the_weights_of_the_shards_are_one_on_average():
    assert in_processes(2, weights_of_shards, 5) == [pytest.approx(6 / 5), pytest.approx(4 / 5)]
    assert in_processes(3, weights_of_shards, 4) == [1.5, 0.75, 0.75]


# ------------------------------------------------------------------------------------- sharded batches


class Numbers(Dataset):
    """Samples (index, epoch); those of `bad` cannot be read."""

    def __init__(self, count, bad=(), error=DataError):
        self.count = count
        self.bad = bad
        self.error = error
        self.epoch = 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if index in self.bad:
            raise self.error(f"sample {index} cannot be read")
        return torch.tensor([index, self.epoch])


def sharded(make, epochs, skip=0):
    """What a process gets of each batch of some epochs: the samples, their names, and the shard."""
    loader = make()
    loader.shard_batches(collectives.world())
    loader.lockstep = True
    got = []
    for epoch in epochs:
        loader.set_epoch(epoch, skip)
        got.append([])
        for batch in loader:
            assert len(batch) == loader.shard.images
            got[-1].append((batch.tolist(), list(loader.batch_names), loader.shard))
    return got, len(loader), loader.batch_size, loader.batch_count


def as_one(of_processes):
    """What processes got of each batch, put together again."""
    epochs = zip(*of_processes, strict=True)
    return [[joined(batch) for batch in zip(*epoch, strict=True)] for epoch in epochs]


def joined(batch):
    samples, names, shards = zip(*batch, strict=True)
    whole = sum(map(len, samples))
    assert list(shards) == [Shard.of(whole, rank, len(shards)) for rank in range(len(shards))]
    return list(chain(*samples)), list(chain(*names)), Shard(0, whole, whole)


def shuffled(workers):
    return BaseDataLoader(Numbers(18), 5, shuffle=True, num_workers=workers, seed=3, keep_workers=True)


@pytest.mark.parametrize(
    ("processes", "workers"), [(2, 0), (2, 2), pytest.param(3, 0, marks=pytest.mark.slow)]
)
def test_the_shards_make_the_batches_of_one_process(processes, workers):
    def make():
        return shuffled(workers)

    alone, *sizes = sharded(make, [1, 2])
    assert [len(names) for _, names, _ in alone[0]] == [5, 5, 5, 3]
    assert alone[0] != alone[1]
    got, *others = zip(*in_processes(processes, sharded, make, [1, 2]), strict=True)
    assert as_one(got) == alone
    assert sizes == [4, 5, 4]
    assert list(zip(*others, strict=True)) == [tuple(sizes)] * processes  # the numbers of the whole


def test_batches_with_fewer_images_than_processes_are_left_out():
    def read():
        loader = BaseDataLoader(Numbers(16), 5, batch_sampler=[[3], [1, 2, 3, 4], [0, 5]])
        loader.shard_batches(collectives.world())
        names = loader.names_in_epoch(0, 2)
        loader.set_epoch(1, skip=1)
        return len(loader), names, [batch.tolist() for batch in loader]

    names = ["1", "2", "3", "4", "0", "5"]
    assert in_processes(2, read) == [(2, names, [[[0, 1]]]), (2, names, [[[5, 1]]])]


def test_an_epoch_goes_on_after_the_batches_that_are_left_out():
    def make():
        return shuffled(2)

    alone, *_ = sharded(make, [4])
    got = [of_process[0] for of_process in in_processes(2, sharded, make, [4], 2)]
    assert as_one(got) == [alone[0][2:]]


def test_an_iteration_that_is_broken_off_leaves_nothing_to_the_next():
    def after_a_break():
        loader = shuffled(2)
        loader.shard_batches(collectives.world())
        loader.set_epoch(1)
        next(iter(loader))
        return sharded(lambda: loader, [1])[0]

    assert as_one(in_processes(2, after_a_break)) == sharded(lambda: shuffled(0), [1])[0]


def test_other_forms_of_batches_are_sharded_alike():
    forms = [
        lambda: BaseDataLoader(Numbers(16), 5, drop_last=True),
        lambda: BaseDataLoader(Numbers(16), batch_sampler=[[3, 6, 7], [1, 2, 3, 4], [0, 5, 8]]),
    ]

    def all_forms():
        return [sharded(make, [1])[0] for make in forms]

    for got, alone in zip(zip(*in_processes(3, all_forms), strict=True), all_forms(), strict=True):
        assert as_one(got) == alone


def test_the_validation_samples_are_the_same_in_all_processes():
    def split():
        loader = BaseDataLoader(Numbers(20), 4, shuffle=True, validation_split=0.3, seed=8)
        validation = loader.split_validation()
        loader.shard_batches(collectives.world())
        return loader.split, validation.indices.tolist(), [b.tolist() for b in validation]

    assert in_processes(2, split) == [split()] * 2


# -------------------------------------------------------------------------- balance and pseudo-labels


@pytest.fixture(scope="module")
def steel(tmp_path_factory):
    folder = draw_data(tmp_path_factory.mktemp("shared"), numbered([(12, ()), (6, (1,)), (3, (2,))]))
    names = [f"p{index}.png" for index in range(6)]
    draw_images(folder / "test_images", names, grey=200)
    (folder / "pseudo.csv").write_text(OF_2019 + "".join(f"{name}_1,1 2\n" for name in names))
    return folder


@pytest.mark.parametrize("kind", ["fixed", "random"])
def test_balanced_batches_with_pseudo_labels_are_composed_as_a_whole(steel, kind):
    def make():
        return SteelSegDataLoader(
            str(steel),
            classes=2,
            augmentation=HeavyCropTransforms(8, 8),
            balance={"alpha": 0.7, "kind": kind},
            pseudo={"csv": "pseudo.csv", "share": 0.3},
            batch_size=7,
            validation_split=0,
            seed=5,
        )

    def read():
        loader = make()
        loader.shard_batches(collectives.world())
        loader.set_epoch(2)
        return [list(batch) for batch in loader]

    alone = read()
    assert [len(images) for images, _ in alone] == [7] * 5  # 21 images: 5 are labelled of each 7
    for batch, parts in zip(alone, zip(*in_processes(2, read), strict=True), strict=True):
        for whole, of_processes in zip(batch, zip(*parts, strict=True), strict=True):
            assert torch.equal(torch.cat(of_processes), whole)


# -------------------------------------------------------------------------------------- whole batches


def dealt(sizes, workers):
    """What a process gets of the batches of several data sets, with and without waiting for the others."""
    results = []
    for samples in sizes:
        for lockstep in (False, True):
            loader = BaseDataLoader(Numbers(samples), 4, num_workers=workers if lockstep else 0)
            loader.distribute_batches(collectives.world())
            loader.lockstep = lockstep
            batches = [batch.tolist() for batch in loader]
            assert len(batches) == len(loader)
            assert (loader.batch_size, loader.batch_count) == (4, -(-samples // 4))
            results.append(batches)
    return results


@pytest.mark.parametrize("processes", [3, pytest.param(2, marks=pytest.mark.slow)])
def test_whole_batches_are_dealt_out_in_turn(processes):
    sizes = [20, 21, 8, 3]  # 5, 6, 2 and 1 batches
    alone = dealt(sizes, 0)
    for batches, of_processes in zip(
        alone, zip(*in_processes(processes, dealt, sizes, 1), strict=True), strict=True
    ):
        rounds = zip_longest(*of_processes)
        assert [batch for in_round in rounds for batch in in_round if batch] == batches


# ------------------------------------------------------------------------------------------- faults


def until_the_fault(make, is_sharded):
    """How many batches there were before the error, and the error."""
    loader = make()
    (loader.shard_batches if is_sharded else loader.distribute_batches)(collectives.world())
    loader.lockstep = True
    batches = 0
    try:
        for _ in loader:
            batches += 1
    except (DataError, RuntimeError) as error:
        return batches, type(error), str(error)
    return batches, None, ""


@pytest.mark.parametrize("workers", [0, 1])
def test_what_one_process_cannot_read_ends_the_epoch_in_all(workers):
    def make():
        return BaseDataLoader(Numbers(20, bad=[9]), 4, num_workers=workers)

    # Batch 2 is 8 to 11, of which the second process has 10 and 11
    elsewhere = (2, ElsewhereError, "another process could not read its data")
    assert in_processes(2, until_the_fault, make, True) == [
        (2, DataError, "sample 9 cannot be read"),
        elsewhere,
    ]
    # Dealt out it is the first batch of the third process
    first, second, third = in_processes(3, until_the_fault, make, False)
    assert third == (0, DataError, "sample 9 cannot be read")
    assert first == second == (0, *elsewhere[1:])


def test_a_fault_in_the_last_round_reaches_those_who_have_no_batch_left():
    def make():
        return BaseDataLoader(Numbers(16, bad=[13]), 4)

    error = (1, DataError, "sample 13 cannot be read")
    elsewhere = (1, ElsewhereError, "another process could not read its data")
    assert in_processes(3, until_the_fault, make, False) == [error, elsewhere, elsewhere]


def test_each_tells_its_own_fault_where_several_have_one():
    def make():
        return BaseDataLoader(Numbers(8, bad=[0, 3], error=RuntimeError), 4)

    (_, first, one), (_, second, other) = in_processes(2, until_the_fault, make, True)
    assert (first, one) == (RuntimeError, "sample 0 cannot be read")
    assert (second, other) == (RuntimeError, "sample 3 cannot be read")
