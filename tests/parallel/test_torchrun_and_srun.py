"""Training by processes that other programs start: torchrun, by one or several agents, and srun."""

import os
import re
import signal
import socket

import pytest
from launched import started
from runs import SIZE, done, run_folder, steel_config, write_config
from same_run import LONG, assert_close, weights_of, without_batch_norm

TORCHRUN = ("-m", "torch.distributed.run")


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("launchers") / "data"
    done("synth", folder, "-n", "16", "--size", *map(str, SIZE))
    return folder


@pytest.fixture
def config(data_dir, tmp_path):
    return without_batch_norm(steel_config(data_dir, tmp_path / "saved"))


@pytest.fixture
def weights_of_one(config, tmp_path):
    """Those of one process."""
    path = write_config(tmp_path / "one.yml", config | {"save_dir": str(tmp_path / "one")})
    return weights_of(run_folder(done("train", "-c", path, "-d", "cpu")))


def free_port():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


def the_run(folder):
    """The one folder of a run."""
    (run,) = (folder / "saved" / "small").iterdir()
    return run


def agents(folder, *args, restarts=0):
    """The start of two agents, as on two machines."""
    meeting = ("--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{free_port()}")
    options = ("--nnodes", "2", "--nproc-per-node", "1", "--local-addr", "127.0.0.1", *meeting)
    options += ("--max-restarts", str(restarts))
    loopback = {"GLOO_SOCKET_IFNAME": "lo"}
    return [
        started(*TORCHRUN, *options, "-m", "sever", "train", *args, folder=folder, environment=loopback)
        for _ in range(2)
    ]


def test_torchrun(config, weights_of_one, tmp_path):
    path = write_config(tmp_path / "c.yml", config)
    launcher = (*TORCHRUN, "--standalone", "--nproc-per-node", "2")
    with started(*launcher, "-m", "sever", "train", "-c", path, folder=tmp_path) as running:
        printed = running.done()
    run = the_run(tmp_path)
    assert run == run_folder(printed)
    assert re.search(r"^processes      2; of a batch of 4 images each has 2;", printed, flags=re.MULTILINE)
    assert printed.count("epoch 1/2") == 1
    assert_close(weights_of_one, weights_of(run))


@pytest.mark.slow
def test_two_agents(config, weights_of_one, tmp_path):
    path = write_config(tmp_path / "c.yml", config)
    first, second = agents(tmp_path, "-c", path)
    with first as one, second as other:
        printed = one.done() + other.done()
    assert printed.count("epoch 1/2") == 1
    assert_close(weights_of_one, weights_of(the_run(tmp_path)))


@pytest.mark.slow
@pytest.mark.parametrize("of_both", [True, False])
def test_a_signal_to_agents_saves(of_both, config, tmp_path):
    config["training"] |= LONG | {"save_every": "1h"}
    first, second = agents(tmp_path, "-c", write_config(tmp_path / "c.yml", config))
    with first as one, second as other:
        one.wait_for(lambda: "epoch 2/" in one.stdout + other.stdout)
        one.send(signal.SIGTERM)
        if of_both:
            other.send(signal.SIGTERM)
        assert one.status() != 0
        assert other.status() != 0
        printed = one.stdout + other.stdout
    assert printed.count("The run was stopped by SIGTERM") == 1
    run = the_run(tmp_path)
    done("train", "-r", run / "checkpoint_last.pth", "-d", "cpu", "-s", "training.max_time=1s")


@pytest.mark.slow
def test_torchrun_starts_again_what_was_killed(config, tmp_path):
    config["training"] |= {"epochs": 25, "save_every": "0.001s", "keep_last": 3}
    path = write_config(tmp_path / "c.yml", config)
    launcher = (*TORCHRUN, "--standalone", "--nproc-per-node", "2", "--max-restarts", "1")
    with started(*launcher, "-m", "sever", "train", "-r", "auto", "-c", path, folder=tmp_path) as running:
        running.wait_for_line("epoch 2/")
        assert running.listening_at(rank=0) == {"0100007F"}  # 127.0.0.1; torchrun's own are not
        os.kill(running.rank(1), signal.SIGKILL)
        assert running.status() == 0, running.output
        assert "Going on from" in running.stdout
    assert (the_run(tmp_path) / "checkpoint_epoch_25.pth").is_file()


@pytest.mark.slow
def test_agents_start_again_what_was_killed_on_one_machine(config, tmp_path):
    config["training"] |= {"epochs": 25, "save_every": "0.001s", "keep_last": 3}
    path = write_config(tmp_path / "c.yml", config)
    first, second = agents(tmp_path, "-r", "auto", "-c", path, restarts=1)
    with first as one, second as other:
        one.wait_for(lambda: "epoch 2/" in one.stdout + other.stdout)
        of_rank_0 = one if "epoch 2/" in one.stdout else other
        os.kill((other if of_rank_0 is one else one).rank(1), signal.SIGKILL)
        assert one.status() == 0, one.output
        assert other.status() == 0, other.output
        assert "Going on from" in one.stdout + other.stdout
    assert (the_run(tmp_path) / "checkpoint_epoch_25.pth").is_file()


@pytest.mark.slow
def test_srun(config, weights_of_one, tmp_path):
    path = write_config(tmp_path / "c.yml", config)
    job = {
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_STEP_TASKS_PER_NODE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "GLOO_SOCKET_IFNAME": "lo",
    }
    first, second = (
        started(
            *("-m", "sever", "train", "-c", path),
            folder=tmp_path,
            environment=job | {"SLURM_PROCID": rank, "SLURM_LOCALID": rank},
        )
        for rank in "01"
    )
    with first as one, second as other:
        printed = one.done()
        assert other.done() == ""
    assert printed.count("epoch 1/2") == 1
    assert_close(weights_of_one, weights_of(the_run(tmp_path)))
