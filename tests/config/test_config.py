"""Config files, overrides, YAML and the registries."""

import importlib
import json
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sever.base import BaseModel
from sever.config.build import bound_args, build, check
from sever.config.load import Section, load_config
from sever.config.registry import LOSSES, METRICS, MODELS, Registry
from sever.config.section_checks import check_sections
from sever.model.loss import BCEDiceLoss
from sever.utils.errors import ConfigError
from sever.utils.yaml_parser import dump_yaml, parse_yaml

COMPLETE = """
arch: {type: Unet, args: {encoder_name: resnet18, classes: 4}}
data_loader: {type: SteelSegDataLoader, args: {data_dir: data, batch_size: 8}}
loss: nll_loss
metrics: [dice, iou]
optimizer: {type: RAdam, args: {eps: 1e-6}, encoder: {lr: 7e-5}, decoder: {lr: 3e-3}}
training: {epochs: 250, monitor: max val_dice_mean}
"""


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write files into the working folder, which is empty, and return the first one's name."""
    monkeypatch.chdir(tmp_path)

    def write_files(text=COMPLETE, **more):
        for name, content in {"exp": text, **more}.items():
            content = content if isinstance(content, bytes) else content.encode()
            (tmp_path / f"{name}.yml").write_bytes(content)
        return "exp.yml"

    return write_files


def mistake(path, overrides=()):
    with pytest.raises(ConfigError) as error:
        load_config(path, overrides)
    return str(error.value)


# ----------------------------------------------------------------------------------- whole configs


def test_a_complete_config_gets_typed_and_defaults_are_filled_in(write):
    config = load_config(write()).checked
    assert config.arch.type == "Unet"
    assert config.arch.args == {"encoder_name": "resnet18", "classes": 4}
    assert config.loss == Section(type="nll_loss")
    assert [metric.type for metric in config.metrics] == ["dice", "iou"]
    assert config.optimizer.encoder == {"lr": 7e-5}
    assert (config.n_gpu, config.save_dir, config.training.save_period) == (1, "saved/", 1)
    assert (config.predict.threshold, config.lr_scheduler, config.testing) == (0.5, None, None)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("", "exp"),
        ("short_name: short\n", "short"),
        ("name: long\n", "long"),
        ("short_name: short\nname: long\n", "long"),
    ],
)
def test_a_run_is_called_by_name_else_short_name_else_the_file(write, text, name):
    config = load_config(write(COMPLETE + text))
    assert config.checked.name == config.values["name"] == name
    assert "short_name" not in config.values


@pytest.mark.parametrize("name", ["''", "' '", "a/b", "a\\b", ".", "..", "7", "[a]", "null"])
def test_a_name_must_do_as_a_folder(write, name):
    assert "name: " in mistake(write(COMPLETE + f"name: {name}\n"))


def test_sections_of_the_users_own_are_kept(write):
    config = load_config(write(COMPLETE + "pseudo_labels: {share: 0.12, csv: pseudo.csv}\n"))
    assert config.values["pseudo_labels"] == {"share": 0.12, "csv": "pseudo.csv"}
    assert config.checked.model_extra == {"pseudo_labels": {"share": 0.12, "csv": "pseudo.csv"}}


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("optimiser", "optimizer"),
        ("dataloader", "data_loader"),
        ("metric", "metrics"),
        ("lr_schedule", "lr_scheduler"),
        ("train", "trainer"),
        ("augmentations", "augmentation"),
        ("Seed", "seed"),
        ("shortname", "short_name"),
        ("extend", "extends"),
    ],
)
def test_a_key_that_is_nearly_a_known_one_is_a_mistake(write, key, meant):
    message = mistake(write(COMPLETE + f"{key}: 3\n"))
    assert message == f"exp.yml: unknown key '{key}'. Did you mean '{meant}'?"


def test_all_mistakes_are_reported_at_once(write):
    message = mistake(
        write(
            COMPLETE.replace("loss: nll_loss", "los: nll_loss")
            .replace("epochs: 250", "epoch: 250")
            .replace("max val_dice_mean", "best")
            .replace("decoder:", "decodr:")
            + "seed: -1\nn_gpu: two\npredict: {threshold: 0.5, min_aera: 600}\n"
        )
    )
    for expected in [
        "unknown key 'los'. Did you mean 'loss'?",
        "'training.epochs' is missing",
        "training: unknown key 'epoch'. Did you mean 'epochs'?",
        "training.monitor: expected 'min KEY', 'max KEY' or 'off'",
        "optimizer: unknown key 'decodr'. Did you mean 'decoder'?",
        "seed: expected greater than or equal to 0, received -1",
        "n_gpu: expected a valid integer, received 'two'",
        "predict: unknown key 'min_aera'. Did you mean 'min_area'?",
    ]:
        assert expected in message
    assert "'loss' is missing" not in message  # it is there, misspelt
    assert all(line.startswith("exp.yml: ") for line in message.splitlines())


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("training.epochs=0", "training.epochs: expected greater than or equal to 1, received 0"),
        ("training.epochs='3'", "training.epochs: expected a valid integer, received '3'"),
        ("training.epochs=2.5", "training.epochs: expected a valid integer, received 2.5"),
        ("training.tensorboard=yes", "training.tensorboard: expected a valid boolean, received 'yes'"),
        ("training.verbose=3", "training.verbose: expected 0, 1 or 2, received 3"),
        ("training.monitor=val_loss", "training.monitor: .* received 'val_loss'"),
        ("n_gpu=true", "n_gpu: expected a valid integer, received True"),
        ("seed=7e-5", "seed: expected a valid integer, received 7e-05"),
        ("save_dir=3", "save_dir: expected a valid string, received 3"),
        ("loss=3", "loss: expected a name, or 'type' and 'args', received 3"),
        ("arch.args=[a]", "arch.args: expected a valid mapping, received"),
        ("metrics=dice", "metrics: expected a valid list, received 'dice'"),
        ("predict.threshold=1.5", "predict.threshold: expected less than or equal to 1, received 1.5"),
        ("predict.min_area=[600, 1.5]", "predict.min_area.*received 1.5"),
        ("optimizer.decoder=", "optimizer: needs both 'encoder:' and 'decoder:', or neither"),
        ("arch.arguments={}", "arch: unknown key 'arguments'"),
    ],
)
def test_a_value_of_another_kind_is_named_with_what_was_expected(write, override, expected):
    with pytest.raises(ConfigError, match=f"exp.yml: {expected}"):
        load_config(write(), [override])


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "exp.yml: expected sections .* received an empty file"),
        (b"# nothing\n", "exp.yml: .* received an empty file"),
        (b"- arch\n", "exp.yml: .* received a list"),
        (b"arch\n", "exp.yml: .* received a str"),
        (b"arch:\n\ttype: Unet\n", "exp.yml, line 2: not valid YAML: .*t' that cannot start"),
        (b"arch: [\n", "exp.yml, line 2: not valid YAML"),
        (b"name: {{ name }}\n", "exp.yml, line 1: not valid YAML"),
        (b"name: \xe9\n", "exp.yml: not a text file in UTF-8"),
        ("name: a\n".encode("utf-16"), "exp.yml: not a text file in UTF-8"),
    ],
    ids=["empty", "comment", "list", "text", "tab", "unclosed", "template", "latin-1", "UTF-16"],
)
def test_a_file_that_is_no_config_is_named(write, content, expected):
    with pytest.raises(ConfigError, match=expected):
        load_config(write(content))


def test_a_byte_order_mark_and_crlf_do_not_matter(write):
    plain = load_config(write()).values
    assert load_config(write(b"\xef\xbb\xbf" + COMPLETE.replace("\n", "\r\n").encode())).values == plain


@pytest.mark.parametrize("path", ["nothing.yml", "."])
def test_a_file_that_cannot_be_read_is_named(write, path):
    write()
    assert mistake(path).startswith(f"{path}: cannot be read: ")


# ----------------------------------------------------------------------------------------- extends


def test_a_config_is_merged_over_the_one_that_it_extends_key_by_key(write):
    child = "extends: base.yml\narch: {args: {classes: 3}}\ntraining: {epochs: 5}\nmetrics: [iou]\n"
    config = load_config(write(child, base=COMPLETE + "seed: 1\n")).values
    assert "extends" not in config
    assert config["arch"] == {"type": "Unet", "args": {"encoder_name": "resnet18", "classes": 3}}
    assert config["training"] == {"epochs": 5, "monitor": "max val_dice_mean"}
    assert config["metrics"] == ["iou"]  # a list is replaced
    assert config["seed"] == 1


def test_extending_goes_over_several_files_each_beside_the_one_that_names_it(write, tmp_path):
    write("extends: sub/middle.yml\nseed: 3\n")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "middle.yml").write_text("extends: base.yml\nseed: 2\nn_gpu: 2\n")
    (tmp_path / "sub" / "base.yml").write_text(COMPLETE + "seed: 1\nn_gpu: 1\nsave_dir: elsewhere\n")
    config = load_config("exp.yml").checked
    assert (config.seed, config.n_gpu, config.save_dir) == (3, 2, "elsewhere")


def test_a_section_of_another_type_takes_none_of_the_args_that_it_extends(write):
    child = "extends: base.yml\narch: {type: FPN, args: {classes: 3}}\noptimizer: {type: Adam}\n"
    config = load_config(write(child, base=COMPLETE)).values
    assert config["arch"] == {"type": "FPN", "args": {"classes": 3}}
    assert config["optimizer"] == {"type": "Adam", "encoder": {"lr": 7e-5}, "decoder": {"lr": 3e-3}}


def test_a_section_of_the_same_type_keeps_them(write):
    child = "extends: base.yml\narch: {type: Unet, args: {classes: 3}}\n"
    config = load_config(write(child, base=COMPLETE)).values
    assert config["arch"]["args"] == {"encoder_name": "resnet18", "classes": 3}


def test_a_bare_name_is_a_type_when_it_is_extended(write):
    child = "extends: base.yml\nloss: {args: {k: 3}}\n"
    assert load_config(write(child, base=COMPLETE)).checked.loss == Section(type="nll_loss", args={"k": 3})
    child = "extends: base.yml\narch: FPN\n"
    assert load_config(write(child, base=COMPLETE)).checked.arch == Section(type="FPN")


@pytest.mark.parametrize("base", ["name: base\n", "short_name: base\n", ""])
@pytest.mark.parametrize("child", ["name: child\n", "short_name: child\n"])
def test_a_config_has_its_own_name_whatever_the_one_that_it_extends_is_called(write, base, child):
    path = write(f"extends: base.yml\n{child}", base=COMPLETE + base)
    assert load_config(path).checked.name == "child"


@pytest.mark.parametrize(
    ("exp", "base"), [("extends: exp.yml\n", ""), ("extends: base.yml\n", "extends: exp.yml\n")]
)
def test_a_config_that_extends_itself_is_a_mistake(write, exp, base):
    assert "extends itself" in mistake(write(COMPLETE + exp, base=COMPLETE + base))


def test_a_missing_base_is_named_with_the_file_that_extends_it(write):
    message = mistake(write("extends: sub/nothing.yml\n" + COMPLETE))
    assert "nothing.yml: cannot be read" in message
    assert "exp.yml" in message
    assert "extends" in message


@pytest.mark.parametrize("base", ["[base.yml]", "3", "{a: b}"])
def test_a_base_must_be_a_path(write, base):
    assert "exp.yml: extends: expected the path" in mistake(write(f"extends: {base}\n" + COMPLETE))


# --------------------------------------------------------------------------------------- overrides


def test_an_override_sets_a_dotted_key_to_a_value_in_yaml(write):
    overrides = [
        "training.epochs=3",
        "optimizer.encoder.lr=7e-4",
        "metrics=[dice]",
        "predict.min_area=[600, 600, 1000, 2000]",
        "arch.args.encoder_weights=",
        "augmentation={type: LightTransforms}",
        "save_dir=a=b",
        "own.deep.key=on",
        "training.epochs=4",
    ]
    config = load_config(write(), overrides).values
    assert config["training"] == {"epochs": 4, "monitor": "max val_dice_mean"}
    assert config["optimizer"]["encoder"] == {"lr": 7e-4}
    assert config["metrics"] == ["dice"]
    assert config["predict"] == {"min_area": [600, 600, 1000, 2000]}
    assert config["arch"]["args"] == {"encoder_name": "resnet18", "classes": 4, "encoder_weights": None}
    assert config["augmentation"] == {"type": "LightTransforms"}
    assert config["save_dir"] == "a=b"
    assert config["own"] == {"deep": {"key": "on"}}


def test_an_override_reaches_into_a_section_that_is_a_bare_name(write):
    config = load_config(write(), ["loss.args.weight=2"])
    assert config.checked.loss == Section(type="nll_loss", args={"weight": 2})


def test_an_override_is_stronger_than_file_and_base(write):
    path = write("extends: base.yml\nseed: 2\n", base=COMPLETE + "seed: 1\n")
    assert load_config(path, ["seed=3"]).checked.seed == 3


@pytest.mark.parametrize("key", ["name", "short_name"])
@pytest.mark.parametrize("text", ["name: file\n", "short_name: file\n", ""])
def test_an_override_renames_the_run(write, text, key):
    assert load_config(write(COMPLETE + text), [f"{key}=other"]).checked.name == "other"


@pytest.mark.parametrize("override", ["training.epochs", "=5", "training..epochs=5", ".a=5", "a.=5", ""])
def test_an_override_that_is_no_key_and_value_is_a_mistake(write, override):
    assert mistake(write(), [override]) == (
        f"-s {override}: expected KEY=VALUE, e.g. optimizer.encoder.lr=7e-5"
    )


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("metrics.5=dice", r"-s metrics\.5=dice: expected a place from 0 to 1 in the list, received '5'"),
        ("training.epochs.first=3", r"-s training\.epochs\.first=3: 'training\.epochs' is 250"),
        ("arch.args=[1", r"-s arch\.args=\[1, line 1: not valid YAML"),
        ("trainng.epochs=3", "unknown key 'trainng'. Did you mean 'training'"),
    ],
)
def test_an_override_that_does_not_fit_is_named(write, override, expected):
    with pytest.raises(ConfigError, match=expected):
        load_config(write(), [override])


def test_overriding_a_loaded_config_leaves_it_as_it_was(write):
    config = load_config(write())
    assert config.override(["training.epochs=3"]).checked.training.epochs == 3
    assert config.checked.training.epochs == config.values["training"]["epochs"] == 250


# -------------------------------------------------------------------------------------------- YAML


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("7e-5", 7e-5),
        ("1E3", 1000.0),
        (".5", 0.5),
        ("-1.5e+3", -1500.0),
        ("3", 3),
        ("+12", 12),
        ("012", 12),
        ("0x1F", 31),
        ("0o17", 15),
        ("-.inf", -float("inf")),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("on", "on"),
        ("off", "off"),
        ("yes", "yes"),
        ("no", "no"),
        ("y", "y"),
        ("1:30", "1:30"),
        ("1_000", "1_000"),
        ("2019-10-24", "2019-10-24"),
        ("1e", "1e"),
        ("'7e-5'", "7e-5"),
    ],
)
def test_numbers_and_truth_values_are_those_of_yaml_1_2(text, value):
    parsed = parse_yaml(f"key: {text}", "f.yml")["key"]
    assert parsed == value
    assert type(parsed) is type(value)


def test_anchors_and_merge_keys_work():
    text = "base: &base {lr: 1e-3, eps: 1e-8}\nmore: {<<: *base, lr: 1e-2}\n"
    assert parse_yaml(text, "f.yml")["more"] == {"lr": 1e-2, "eps": 1e-8}


@pytest.mark.parametrize(
    ("text", "line"),
    [("a: 1\nb: 2\na: 3\n", 3), ("s:\n  a: 1\n  a: 1\n", 3), ("{a: 1, 'a': 2}", 1)],
)
def test_a_key_given_twice_is_a_mistake(text, line):
    with pytest.raises(ConfigError, match=f"f.yml, line {line}: .*the key 'a' is given twice"):
        parse_yaml(text, "f.yml")


@pytest.mark.parametrize("text", ["{[1, 2]: 3}", "{{a: b}: c}", "a: !own 3", "a: *b", "a: !!int x", "<<: 5"])
def test_what_has_no_plain_value_is_a_mistake(text):
    with pytest.raises(ConfigError, match=r"^f\.yml.*: not valid YAML: "):
        parse_yaml(text, "f.yml")


texts = st.text(st.characters(exclude_categories=("C", "Z")), max_size=8)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None, max_examples=80, derandomize=True)
@given(st.dictionaries(texts, values, max_size=3))
def test_plain_values_come_back_from_yaml(plain):
    assert parse_yaml(dump_yaml(plain), "f.yml") == plain


@pytest.mark.parametrize(
    "text",
    ["7e-5", "1.5e3", ".5e3", "08", "089", "012", "0x1F", "0o17", "3", "true", "on", "null", "~", "1:30"],
)
def test_a_text_that_looks_like_a_number_comes_back_as_text(text):
    assert parse_yaml(dump_yaml({"name": text, text: [text]}), "f.yml") == {"name": text, text: [text]}


# ---------------------------------------------------------------------------------------- registry


class Shape:
    """What the registry of these tests holds."""


class Circle(Shape):
    def __init__(self, radius: float, colour: str = "grey", *, canvas: list | None = None) -> None:
        if radius <= 0:
            raise ValueError(f"radius must be above 0, received {radius}")
        self.radius, self.colour, self.canvas = radius, colour, canvas


class Dot(Circle):
    """Passes what it does not know on to its base."""

    def __init__(self, colour: str = "black", **kwargs) -> None:
        super().__init__(colour=colour, **kwargs)


class Open(Shape):
    def __init__(self, size: int = 1, **kwargs) -> None:
        self.size = size


class Failing(Shape):
    """Raises what it is told to."""

    def __init__(self, kind: str) -> None:
        raise {"key": KeyError("no such colour"), "file": FileNotFoundError("paint.txt")}[kind]


SHAPES = Registry("shape", base=Shape)
for thing in (Circle, Dot, Open, Failing):
    SHAPES.register(thing)


def made(name, _where="f.yml: shape", _ready=None, **args):
    return build(SHAPES, Section(type=name, args=args), _where, **(_ready or {}))


def refused(name, **args):
    with pytest.raises(ConfigError) as error:
        made(name, **args)
    return str(error.value)


def test_a_registered_name_is_built_with_its_args():
    circle = made("Circle", radius=2, colour="red")
    assert (type(circle), circle.radius, circle.colour) == (Circle, 2, "red")
    assert SHAPES.names() == ["Circle", "Dot", "Failing", "Open"]


def test_ready_objects_are_passed_to_what_takes_them():
    canvas = []
    assert made("Circle", _ready={"canvas": canvas, "other": 1}, radius=1).canvas is canvas
    assert made("Open", _ready={"canvas": canvas}).size == 1


def test_an_arg_that_the_program_sets_is_a_mistake():
    section = Section(type="Circle", args={"radius": 1, "canvas": []})
    (fault,) = check(SHAPES, section, "shape", ready=["canvas"])
    assert fault == "shape.args: 'canvas' of Circle is set by the program; remove it"


@pytest.mark.parametrize(("name", "meant"), [("Cirle", "Circle"), ("circle", "Circle"), ("Dott", "Dot")])
def test_an_unknown_name_gets_the_nearest_one_and_all_that_there_are(name, meant):
    message = refused(name)
    assert f"f.yml: shape: '{name}' is not a known shape. Did you mean '{meant}'?" in message
    assert "Known: Circle, Dot, Failing, Open." in message
    assert "import path" in message


def test_a_name_that_is_near_nothing_gets_no_guess():
    assert "Did you mean" not in refused("zebra")


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (
            {"radius": 1, "color": "red"},
            "Circle does not take 'color'. Did you mean 'colour'? It takes: radius",
        ),
        ({}, "f.yml: shape.args: Circle needs 'radius'"),
        ({"radius": "2"}, "f.yml: shape.args.radius: expected a valid number, received '2'"),
        ({"radius": 1, "colour": 3}, "f.yml: shape.args.colour: expected a valid string, received 3"),
        ({"radius": True}, "radius: expected a valid number, received True"),
    ],
)
def test_args_are_checked_before_anything_is_built(args, expected):
    assert expected in refused("Circle", **args)


def test_all_faults_of_the_args_are_reported_together():
    message = refused("Circle", color="red", width=2)
    for expected in ("'color'", "'width'", "needs 'radius'"):
        assert expected in message


def test_open_keyword_arguments_accept_nothing():
    assert "Open does not take 'weight'. It takes: size." in refused("Open", weight=3)
    faults = check(MODELS, Section(type="FPN", args={"dropout": 0.2}), "arch")
    assert len(faults) == 1
    assert "FPN does not take 'dropout'. Did you mean 'decoder_dropout'?" in faults[0]


def test_open_keyword_arguments_lead_to_those_of_the_base():
    assert made("Dot", radius=2).radius == 2
    assert bound_args(SHAPES, Section(type="Dot", args={"radius": 2}), "shape") == {
        "radius": 2,
        "colour": "black",
        "canvas": None,
    }
    assert "does not take 'weight'" in refused("Dot", radius=1, weight=3)


@pytest.mark.parametrize(
    ("name", "args", "reason"),
    [
        ("Circle", {"radius": -1.0}, "Circle refuses its arguments: radius must be above 0, received -1.0"),
        ("Failing", {"kind": "key"}, "Failing refuses its arguments: no such colour"),
        ("Failing", {"kind": "file"}, "Failing refuses its arguments: paint.txt"),
    ],
)
def test_what_a_constructor_complains_of_names_the_section(name, args, reason):
    assert refused(name, **args) == f"f.yml: shape: {reason}"


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    """Write a module into the working folder, from which nothing can be imported yet."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", ".")])

    def write_module(name, text):
        (tmp_path / f"{name}.py").write_text(text)

    return write_module


def test_an_import_path_of_the_working_folder_is_found(own_module):
    own_module(
        "own_losses",
        "from torch import nn\n"
        "class MyLoss(nn.Module):\n"
        "    def __init__(self, weight: float = 1.0):\n"
        "        super().__init__()\n"
        "        self.weight = weight\n",
    )
    section = Section(type="own_losses.MyLoss", args={"weight": 0.5})
    assert build(LOSSES, section, "loss").weight == 0.5
    (fault,) = check(LOSSES, Section(type="own_losses.MyLoss", args={"wieght": 0.5}), "loss")
    assert "Did you mean 'weight'?" in fault


def test_a_model_of_ones_own_has_no_more_classes_than_memory_holds(own_module, write):
    own_module(
        "own_net",
        "from sever.base import BaseModel\n"
        "class Net(BaseModel):\n"
        "    def __init__(self, classes: int = 4): ...\n",
    )
    config = load_config(write(), ["arch={type: own_net.Net, args: {classes: 1000000000}}"])
    with pytest.raises(ConfigError, match=r"exp.yml.*: arch.args.classes: expected at most 1000, received"):
        check_sections(config)


def test_an_import_path_of_an_installed_package_is_found():
    assert isinstance(build(LOSSES, Section(type="torch.nn.BCEWithLogitsLoss"), "loss"), nn.Module)
    assert LOSSES.find("sever.model.loss.BCEDiceLoss", "loss") is BCEDiceLoss


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("nowhere_at_all.MyLoss", "'nowhere_at_all.MyLoss' cannot be imported: No module named"),
        ("own_parts.MyLos", "own_parts has no 'MyLos'. Did you mean 'MyLoss'?"),
        ("own_parts.zebra", "own_parts has no 'zebra'."),
        ("own_parts.NUMBER", "is not a class or function but 3"),
        ("own_broken.MyLoss", "'own_broken.MyLoss' cannot be imported"),
        ("own_failing.MyLoss", "'own_failing.MyLoss' cannot be imported"),
        (".MyLoss", "'.MyLoss' cannot be imported"),
        ("..MyLoss", "'..MyLoss' cannot be imported"),
        ("own_parts.", "own_parts"),
    ],
)
def test_an_import_path_that_leads_nowhere_is_a_mistake(own_module, path, expected):
    own_module("own_parts", "class MyLoss: pass\nNUMBER = 3\n")
    own_module("own_broken", "class MyLoss(:\n")
    own_module("own_failing", "import json\njson.no_such_name\n")
    with pytest.raises(ConfigError) as error:
        build(LOSSES, Section(type=path), "f.yml: loss")
    assert str(error.value).startswith("f.yml: loss: ")
    assert expected in str(error.value)


ADDED = """
class OwnLoss(nn.Module):
    def __init__(self, weight: float = 1.0):
        super().__init__()
        self.weight = weight

    def forward(self, output, target):
        return self.weight * (output - target).abs().mean()

def own_distance(output, target, power: float = 2.0):
    return ((output - target).abs() ** power).mean()

def own_weighted(output, target, weight):
    return weight * (output - target).abs().mean()

def helper(values):
    return values

def _private(output, target):
    return output

class Settings:
    pass
"""


@pytest.fixture(params=[LOSSES, METRICS], ids=["loss", "metric"])
def extended(request, monkeypatch):
    """A registry whose home module has some lines more, as if a user had added them."""
    module = importlib.import_module(request.param._home)
    before = dict(vars(module))
    exec(f"from torch import nn\n{ADDED}", vars(module))
    yield request.param
    for name in set(vars(module)) - set(before):
        delattr(module, name)


def test_what_is_added_to_the_home_module_goes_by_its_bare_name(extended):
    section = Section(type="own_distance", args={"power": 1.0})
    assert check(extended, section, "x") == []
    assert build(extended, section, "x")(torch.ones(2), torch.zeros(2)).item() == 1
    (fault,) = check(extended, Section(type="own_distance", args={"pwer": 1.0}), "x")
    assert "Did you mean 'power'?" in fault
    weighted = build(extended, Section(type="own_weighted", args={"weight": 2.0}), "x")
    assert weighted(torch.ones(2), torch.zeros(2)).item() == 2
    if extended is LOSSES:
        assert build(extended, Section(type="OwnLoss", args={"weight": 3.0}), "x").weight == 3


@pytest.mark.parametrize("name", ["helper", "_private", "Settings", "nn", "torch", "F", "Sequence"])
def test_helpers_and_imported_names_of_the_home_module_are_not_known(extended, name):
    with pytest.raises(ConfigError, match=f"'{name}' is not a known {extended.kind}"):
        extended.find(name, "x")


def test_what_is_imported_must_be_of_the_kind():
    reason = f"expected a class derived from {BaseModel.__module__}.BaseModel"
    for path in ("torch.nn.Linear", "json.dumps"):
        with pytest.raises(ConfigError, match=rf"arch: '{path}' is no arch: {reason}"):
            MODELS.find(path, "arch")
    assert MODELS.find("sever.model.model.MnistModel", "arch") is MODELS.find("MnistModel", "arch")


def test_something_without_a_signature_is_a_mistake_not_a_crash():
    (fault,) = check(LOSSES, Section(type="torch.dist", args={"p": 2}), "f.yml: loss")
    assert fault.startswith("f.yml: loss")


def test_the_values_of_a_config_are_plain(write):
    values = load_config(write(), ["own.key=[1, on, 7e-5]"]).values
    assert json.loads(json.dumps(values)) == values
    assert parse_yaml(dump_yaml(values), "f.yml") == values
