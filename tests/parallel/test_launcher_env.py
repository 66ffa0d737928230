"""Which rank a launcher gives this process, and the collectives."""

import os
import subprocess
import sys

import pytest
import torch
from in_processes import in_processes

from sever.parallel import collectives
from sever.parallel.rendezvous import process_group
from sever.utils.errors import DeviceError
from sever.utils.launcher_env import World, world_of

TORCHRUN = {
    "RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4",
    "MASTER_ADDR": "10.0.0.7", "MASTER_PORT": "29400",
}  # fmt: skip
# Of `srun` on two machines, as the third process of the second one sees it
SRUN = {
    "SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "6", "SLURM_LOCALID": "2",
    "SLURM_STEP_TASKS_PER_NODE": "3(x2)", "SLURM_NTASKS": "6",
}  # fmt: skip


def test_torchrun_and_srun_tell_the_rank():
    assert world_of(TORCHRUN) == World(rank=5, size=8, local_rank=1, local_size=4)
    assert world_of(SRUN) == World(rank=5, size=6, local_rank=2, local_size=3)
    assert world_of(SRUN | {"SLURM_STEP_TASKS_PER_NODE": "6"}).local_size == 6
    assert world_of(SRUN | TORCHRUN) == world_of(TORCHRUN)
    assert [world_of(TORCHRUN | {"RANK": str(rank)}).is_main for rank in (0, 1)] == [True, False]


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"},  # sbatch's script
        {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0", "SLURM_STEP_ID": "0"},  # srun --pty bash
        {"RANK": "3"},
        {"WORLD_SIZE": "4", "MASTER_ADDR": "10.0.0.7"},
    ],
)
def test_a_process_that_no_launcher_started_is_alone(environment):
    assert world_of(environment) == World(rank=0, size=1, local_rank=0, local_size=1)


@pytest.mark.parametrize(
    ("environment", "change", "words"),
    [
        (TORCHRUN, {"RANK": "one"}, ["variable RANK", "received 'one'"]),
        (TORCHRUN, {"LOCAL_RANK": None}, ["variable LOCAL_RANK", "torchrun"]),
        (SRUN, {"SLURM_STEP_TASKS_PER_NODE": "4(x2),3"}, ["PER_NODE", "'4(x2),3'", "as many"]),
        (SRUN, {"SLURM_PROCID": None}, ["variable SLURM_PROCID"]),
    ],
)
def test_a_variable_that_is_no_number_is_named(environment, change, words):
    changed = {name: value for name, value in (environment | change).items() if value is not None}
    with pytest.raises(DeviceError) as caught:
        world_of(changed)
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize(
    ("address", "port"), [("", "29400"), ("10.0.0.7", ""), ("10.0.0.7", "65536"), ("10.0.0.7", "0")]
)
def test_without_a_place_to_meet_the_lines_to_add_are_told(address, port, monkeypatch):
    monkeypatch.setenv("MASTER_ADDR", address)
    monkeypatch.setenv("MASTER_PORT", port)
    message = r"export MASTER_ADDR=\$\(scontrol show hostnames .* MASTER_PORT="
    with pytest.raises(DeviceError, match=message), process_group(World(0, 2, 0, 2)):
        pass


# --------------------------------------------------------------------------------- how processes meet


def told_each_other():
    rank = collectives.world().rank
    collectives.barrier()
    tensors = [torch.full((2,), float(rank)), torch.tensor(rank)]
    collectives.broadcast_tensors(tensors)
    means = [torch.full((2, 2), 3.0 * rank), torch.tensor(1.0 + rank)]
    collectives.all_reduce_mean(means)
    with collectives.main_first():
        pass
    return {
        "gather": collectives.all_gather({"rank": rank}),
        "gather_on_main": collectives.gather(rank),
        "broadcast": collectives.broadcast(f"of {rank}"),
        "most": collectives.all_reduce_max(rank, -rank),
        "any_of": [collectives.on_any_rank(rank == 1), collectives.on_any_rank(False)],
        "all_true": [collectives.all_reduce_and(torch.tensor(rank < limit)).item() for limit in (1, 9)],
        "spread": [tensor.tolist() for tensor in tensors],
        "average": [tensor.tolist() for tensor in means],
    }


def test_what_processes_tell_each_other():
    first, *others = in_processes(3, told_each_other)
    together = {
        "gather": [{"rank": 0}, {"rank": 1}, {"rank": 2}],
        "broadcast": "of 0",
        "most": [2, 0],
        "any_of": [True, False],
        "all_true": [False, True],
        "spread": [[0.0, 0.0], 0],
        "average": [[[3.0, 3.0], [3.0, 3.0]], 2.0],
    }
    assert first == together | {"gather_on_main": [0, 1, 2]}
    assert others == [together | {"gather_on_main": []}] * 2


def test_alone_a_process_tells_itself():
    told = told_each_other()
    assert (told["gather"], told["gather_on_main"], told["broadcast"]) == ([{"rank": 0}], [0], "of 0")
    assert (told["most"], told["average"]) == ([0, 0], [[[0.0, 0.0], [0.0, 0.0]], 1.0])


def test_one_process_is_the_first_to_fail():
    assert sorted(in_processes(3, collectives.is_first_to_fail)) == [False, False, True]


def test_the_loss_of_another_process_is_a_message():
    def lost():
        if collectives.world().rank == 1:
            raise SystemExit
        collectives.all_gather("…")

    with pytest.raises(AssertionError, match="PeerError: process 0 of 2: another process is gone"):
        in_processes(2, lost)


def test_processes_may_leave_at_once():
    for _ in range(2):
        assert in_processes(3, lambda: None) == [None] * 3


@pytest.mark.slow
def test_no_thread_of_the_group_lives_on_as_python_ends(tmp_path):
    code = (
        "import os; from sever.parallel.collectives import barrier; "
        "from sever.parallel.rendezvous import process_group; "
        "from sever.utils.launcher_env import world_of\n"
        "with process_group(world_of(os.environ)):\n"
        "    import torch.distributed.nn.functional\n"  # as torch's compiler does
        "    from torch.nn.parallel import DistributedDataParallel\n"
        "    model = DistributedDataParallel(torch.nn.Linear(2, 1))\n"
        "    model(torch.ones(1, 2)).sum().backward()\n"
        "    in_a_cycle = [model]\n"  # as what a command used may be
        "    in_a_cycle.append(in_a_cycle)\n"
        "    del model, in_a_cycle\n"
        "    barrier()\n"
        "assert len(os.listdir('/proc/self/task')) == 1"
    )
    environment = os.environ | {collectives.INIT_METHOD: f"file://{tmp_path}/store", "OMP_NUM_THREADS": "1"}
    environment |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "PYTHONPATH": os.pathsep.join(sys.path)}
    started = [
        subprocess.Popen([sys.executable, "-c", code], env=environment | {"RANK": rank, "LOCAL_RANK": rank})
        for rank in "01"
    ]
    assert [process.wait(60) for process in started] == [0, 0]
