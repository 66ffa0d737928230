"""A compiled model trains as the model does, is saved under the same names, and is not needed."""

import pytest
import torch
from runs import done, run_folder, steel_config, synthetic_sheets, write_config
from same_run import assert_close, weights_of

from sever.trainer.compiled import CompiledModel, compiles


@pytest.fixture(scope="module")
def sheets(tmp_path_factory):
    return synthetic_sheets(tmp_path_factory.mktemp("compiled") / "data")


@pytest.fixture
def path(sheets, tmp_path):
    config = steel_config(sheets, tmp_path / "saved")
    config["data_loader"]["args"] |= {"batch_size": 5, "validation_split": 0}  # the last batch has 1 image
    config["training"] = {"epochs": 1, "tensorboard": False}
    return write_config(tmp_path / "c.yml", config)


def test_long_runs_on_a_gpu_are_compiled_unless_the_config_says_otherwise():
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert [compiles("auto", device, steps) for device in (cpu, gpu) for steps in (10, 10**5)] == [
        *(False, False, False, True)
    ]
    assert [compiles(setting, cpu, 1) for setting in (True, False)] == [True, False]


def called(name, calls):
    def compiled(model, **options):
        def forward(inputs):
            calls.append((name, len(inputs)))
            return model(inputs)

        return forward

    return compiled


def test_only_batches_of_the_first_shape_go_through_the_compiled_model(path, monkeypatch):
    calls = []
    monkeypatch.setattr(torch, "compile", called("compiled", calls))
    plain, compiled = (
        run_folder(done("train", "-c", path, "-s", f"training.compile={on}")) for on in ("auto", "true")
    )
    assert calls == [("compiled", 5)] * 3
    one, other = weights_of(plain), weights_of(compiled)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_where_the_compiler_fails_the_model_is_trained_as_it_is(path, monkeypatch):
    def failing(model, **options):
        def forward(inputs):
            raise RuntimeError("no working C++ compiler\nand many lines more")

        return forward

    plain = run_folder(done("train", "-c", path))
    monkeypatch.setattr(torch, "compile", failing)
    output = done("train", "-c", path, "-s", "training.compile=true")
    assert output.count("cannot be compiled, and is trained as it is: no working C++ compiler\n") == 1
    one, other = weights_of(plain), weights_of(run_folder(output))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_an_error_of_the_model_itself_is_raised(monkeypatch):
    class Wrong(torch.nn.Module):
        def forward(self, inputs):
            raise ValueError("a mistake of the model")

    monkeypatch.setattr(torch, "compile", lambda model, **_: model)
    with pytest.raises(ValueError, match="a mistake of the model"):
        CompiledModel(Wrong())(torch.zeros(1))


@pytest.mark.slow
def test_torchs_compiler_trains_as_the_model_does(path):
    plain, compiled = (
        run_folder(done("train", "-c", path, "-s", f"training.compile={on}")) for on in ("false", "true")
    )
    assert_close(weights_of(plain), weights_of(compiled), rounding=1e-4)


def test_channels_last_trains_as_contiguous_weights_do_and_either_goes_on_with_the_other(path, tmp_path):
    last = done("train", "-c", path, "--dry-run", "-s", "training.memory_format=channels_last")
    assert "fp32, channels last\n" in last
    runs = [
        run_folder(done("train", "-c", path, "-s", f"training.memory_format={layout}"))
        for layout in ("contiguous", "channels_last")
    ]
    assert_close(*map(weights_of, runs), rounding=1e-4)
    weights = weights_of(runs[1])
    assert any(w.ndim == 4 and w.is_contiguous(memory_format=torch.channels_last) for w in weights.values())
    for run, layout in zip(runs, ("channels_last", "contiguous"), strict=True):
        more = ("-s", "training.epochs=2", "-s", f"training.memory_format={layout}")
        done("train", "-r", run / "checkpoint_last.pth", *more)
    assert_close(*map(weights_of, runs), rounding=1e-3)
