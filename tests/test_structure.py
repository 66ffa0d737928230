"""Promises about the project itself: who imports whom, what starts fast, which files belong together."""

import ast
import re
import subprocess
import sys

import pytest
import torch
import yaml
from runs import ROOT, done

from sever.config.build import build
from sever.config.load import load_config
from sever.config.registry import MODELS
from sever.config.section_checks import check_sections
from sever.utils.logger import DEFAULT
from sever.utils.yaml_parser import parse_yaml

# Each layer may import those after it; the parts of one layer do not import each other.
LAYERS = [
    {"cli", "__main__"},
    {"options", "run_command"},
    {"commands"},
    {"ensemble_evaluation", "inference"},
    {"trained_models"},
    {"factory"},
    {"trainer", "predictor", "model", "data_loader"},
    {"base"},
    {"engine"},
    {"config", "parallel"},
    {"errors"},
    {"utils"},
]
PURE = [  # know no config
    *("utils/rle.py", "utils/dice.py", "utils/bootstrap.py"),
    *("model/metric.py", "model/competition_metric.py"),
    *(f"predictor/{name}.py" for name in ("postprocess", "connected_components", "per_class_values")),
    *(f"predictor/{name}.py" for name in ("threshold_counts", "threshold_search", "pseudo_labels")),
]
EXPERIMENTS = sorted((ROOT / "experiments").glob("*.yml"))
ON_STEEL = [path for path in EXPERIMENTS if path.name != "config.yml"]


def imports(path):
    """The dotted names of the package's own modules that a file imports."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("sever"):
            if node.module == "sever":
                yield from (f"sever.{alias.name}" for alias in node.names)
            else:
                yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("sever"))


def layer_of(part):
    return next(number for number, parts in enumerate(LAYERS) if part in parts)


def test_imports_lead_down_only():
    wrong = []
    for path in (ROOT / "sever").rglob("*.py"):
        own = path.relative_to(ROOT / "sever").with_suffix("").parts[0]
        if own == "__init__":
            continue
        for module in imports(path):
            part = module.split(".")[1]
            if part in ("__version__", own):
                continue
            if layer_of(part) <= layer_of(own) and (own, part) != ("__main__", "cli"):
                wrong.append(f"{path.name} imports {module}")
    assert wrong == []


@pytest.mark.parametrize("path", PURE)
def test_pure_modules_know_no_config(path):
    assert not [
        module
        for module in imports(ROOT / "sever" / path)
        if module in ("sever.config.load", "sever.config.schema", "sever.config.section_checks")
    ]


def test_albumentations_is_imported_in_one_file_alone():
    users = [p.name for p in (ROOT / "sever").rglob("*.py") if "import albumentations" in p.read_text()]
    assert users == ["transforms.py"]


@pytest.mark.parametrize(
    ("calls", "expected"),
    [
        (r"click\.echo\(|print_exc\(|std(out|err)\.write\(|(?<!>> )\bprint\(", ["printing.py", "logger.py"]),
        (r"\.read_text\(", []),
    ],
    ids=["printing", "reading texts"],
)
def test_what_is_printed_and_the_texts_that_are_read_go_through_one_place(calls, expected):
    users = [p.name for p in (ROOT / "sever").rglob("*.py") if re.search(calls, p.read_text())]
    assert sorted(users) == sorted(expected)


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from sever.cli import cli; cli(['--help'], standalone_mode=False); "
        "heavy = {'torch', 'numpy', 'cv2', 'pandas', 'albumentations', 'pydantic'} & set(sys.modules); "
        "sys.exit(str(heavy) if heavy else 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    for command in ("train", "test", "predict", "synth"):
        assert command in result.stdout


def test_what_needs_no_torch_is_checked_without_it():
    code = (
        "import sys, sever.config.load, sever.config.section_checks, sever.config.registry; "
        "heavy = {'torch', 'numpy', 'cv2', 'pandas'} & set(sys.modules); sys.exit(str(heavy) if heavy else 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["train", "-c", "none.yml"], "none.yml: cannot be read"),
        (["train", "-c", "experiments/demo.yml", "-s", "seed"], "-s seed: expected KEY=VALUE"),
        (["train", "-c", "experiments/demo.yml", "-r", "none.pth"], "none.pth: no such checkpoint file"),
        (["verify", "-c", "setup.py"], "setup.py, line 1: not valid YAML"),
        (["predict", "-r", "experiments"], "experiments: is a folder without a checkpoint"),
        (["test", "-r", "setup.py", "-c", "none.yml"], "none.yml: cannot be read"),
    ],
)
def test_a_slip_in_a_name_is_answered_without_torch(args, message):
    code = "import sys; sys.modules['torch'] = None; from sever.cli import cli; cli()"
    result = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, cwd=ROOT)
    assert (result.returncode, message in result.stderr) == (2, True), result.stderr


def test_a_test_that_is_not_marked_for_one_sees_no_gpu_and_computes_in_one_thread():
    code = "import torch; print(torch.cuda.is_available(), torch.get_num_threads())"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.split() == ["False", "1"]
    assert not torch.cuda.is_available()


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.name)
def test_every_experiment_is_without_mistakes(path):
    check_sections(load_config(path))


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Drawn sheets, some of them with pseudo-labels."""
    folder = tmp_path_factory.mktemp("drawn")
    done("synth", folder, "-n", "32", "--size", "256", "448")
    (folder / "test.csv").rename(folder / "pseudo.csv")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("path", ON_STEEL, ids=lambda path: path.name)
def test_every_experiment_can_be_run(path, drawn, tmp_path):
    settings = ["arch.args.encoder_weights=null", "arch.args.classes=4", "data_loader.args.num_workers=0"]
    settings += [f"data_loader.args.data_dir={drawn}", f"save_dir={tmp_path}"]
    plan = done("train", "-c", path, *(text for s in settings for text in ("-s", s)), "--dry-run")
    for title in ("model", "memory", "training", "validation", "an epoch", "steps", "learning rate"):
        assert f"\n{title} " in plan


PLAN = ROOT / "docs" / "several_machines.rst"


def test_the_plan_for_several_machines_names_every_experiment():
    rows = re.findall(r"^``([\w-]+)`` +[\d,]+ ", PLAN.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert sorted(rows) == sorted(path.stem for path in ON_STEEL)


@pytest.mark.parametrize("name", ["demo", "unet-lite0"])
def test_the_plan_for_several_machines_has_the_size_of_light_models(name):
    arch = load_config(ROOT / f"experiments/{name}.yml", ["arch.args.encoder_weights=null"]).checked.arch
    with torch.device("meta"):
        parameters = build(MODELS, arch, "arch").parameter_count()
    assert re.search(rf"^``{name}`` +{parameters:,} ", PLAN.read_text(encoding="utf-8"), flags=re.MULTILINE)


@pytest.mark.slow
def test_the_plan_for_several_machines_has_the_table_of_today():
    command = [sys.executable, ROOT / "benchmarks/exchange.py"]
    table = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert table in PLAN.read_text(encoding="utf-8")


def test_the_seeds_config_is_there_unchanged(shared_data):
    seed = (shared_data.parent / "guide" / "seed.rst").read_text(encoding="utf-8")
    block = seed.split(".. code-block:: HTML")[1].split("Add addional")[0]
    assert parse_yaml(block, "seed") == parse_yaml((ROOT / "experiments/config.yml").read_text(), "ours")


def test_setup_and_environment_ask_for_the_same_versions():
    setup = (ROOT / "setup.py").read_text()
    asked = set(re.findall(r'^    "([A-Za-z-]+[<>=].*)",$', setup, flags=re.MULTILINE))
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    pip = next(entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict))
    assert asked == {entry for entry in pip if not entry.startswith("--")}
    assert len(asked) > 15


def test_logging_without_a_file_is_what_the_file_says():
    assert parse_yaml((ROOT / "logging.yml").read_text(), "logging.yml") == DEFAULT


def test_each_row_of_the_seeds_table_holds_out_a_fifth_of_its_own():
    seeds = [load_config(path).checked.seed for path in EXPERIMENTS if path.name.startswith("seed-")]
    assert len(set(seeds)) == 5
