"""Whatever stands in a config, a CSV or a field of runs: it is read, or refused with a `SeverError`.

The default suite tries some hundreds of inputs, always the same; the slow tests many more.
"""

import os
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from runs import steel_config
from sheets import OF_2019, TODAY, draw_images

from sever.config.load import load_config
from sever.config.section_checks import check_sections, section_faults
from sever.data_loader.annotations import scan_table
from sever.data_loader.data_faults import ERRORS
from sever.data_loader.training_data import scan_training
from sever.utils.errors import SeverError
from sever.utils.rle import RunsError, decode, encode, parse
from sever.utils.yaml_parser import dump_yaml

FEW, MANY = 100, 5_000  # examples of each of the four


def fuzzed(*strategies):
    """Run a test with few examples, and as a slow test with many."""

    def decorate(test):
        def run(few_or_many, folder):
            examples = settings(
                max_examples=few_or_many,
                derandomize=True,
                deadline=None,
                database=None,
                suppress_health_check=list(HealthCheck),
            )

            @examples
            @given(st.tuples(*strategies))
            def each(values):
                test(folder, *values)

            each()

        run.__name__ = test.__name__
        return pytest.mark.parametrize(
            "few_or_many", [FEW, pytest.param(MANY, marks=pytest.mark.slow)], ids=["few", "many"]
        )(run)

    return decorate


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three tiny images, and the working folder, in which no module lies."""
    place = tmp_path_factory.mktemp("fuzz")
    draw_images(place / "train_images", ["a.png", "b.png"], (4, 6))
    draw_images(place / "train_images", ["c_1.png"], (1, 1))
    before = Path.cwd()
    os.chdir(place)
    yield place
    os.chdir(before)


# ----------------------------------------------------------------------------------------- configs

BASE = steel_config(Path("data"), Path("saved")) | {
    "predict": {"threshold": 0.5, "min_area": [600, 600, 1000, 2000]},
    "trainer": "Trainer",
    "own": {"share": 0.12},
}
PIPELINE = {
    "type": "Pipeline",
    "args": {
        "crop": {"height": 48, "width": 64},
        "transforms": ["HorizontalFlip", {"type": "OneOf", "args": {"transforms": [{"type": "CLAHE"}]}}],
    },
}
WEIGHTED = {
    "type": "WeightedSum",
    "args": {"parts": {"a": {"type": "FocalLoss", "weight": 0.5}, "b": "DiceLoss"}},
}
SWITCHED = {"type": "SwitchedLoss", "args": {"stages": ["BCEDiceLoss", {"type": "BCELoss", "from_epoch": 2}]}}
CONFIGS = [
    BASE,
    BASE | {"augmentation": PIPELINE, "loss": WEIGHTED},
    BASE
    | {
        "loss": SWITCHED,
        "metrics": [{"type": "dice", "args": {}}, "iou"],
        "optimizer": {"type": "lamb", "args": {"lr": 1e-3}, "lookahead": {"k": 6}},
        "lr_scheduler": {
            "type": "OneCycleLR",
            "args": {"max_lr": 0.1},
            "interval": "step",
            "warmup": {"length": 3},
        },
        "training": {"epochs": 3, "max_time": "1h", "clip_grad_norm": 1.0},
    },
]
WORDS = [
    *(
        "type",
        "args",
        "arch",
        "loss",
        "metrics",
        "encoder",
        "lr",
        "Unet",
        "BCELoss",
        "dice",
        "null",
        "name",
        "parts",
    ),
    *(
        "os.system",
        "a.b",
        ".",
        "..",
        "torch.nn.Linear",
        "builtins.exec",
        "extends",
        "c.yml",
        "~",
        "<<",
        "=",
        "[key]",
    ),
    *(
        "\u2028",
        "ä",
        "💥",
        "\x7f",
        "\ufeff",
        "list[",
        "float",
        "Section",
        "constrained-int",
        "{}",
        "%s",
        "'",
        '"',
    ),
]
texts = st.sampled_from(WORDS) | st.text(
    st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=9
)
numbers = (
    st.integers()
    | st.floats()
    | st.sampled_from([0, -1, 2**31, 2**63, 2**64, -(2**63) - 1, 10**399, 1e308, -0.0, 5e-324, 1e22])
)
scalars = st.none() | st.booleans() | numbers | texts
odd_values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(texts | st.integers(-9, 9), inner, max_size=3)
        | st.fixed_dictionaries({"type": texts}, optional={"args": st.dictionaries(texts, inner, max_size=2)})
    ),
    max_leaves=6,
)


def nodes(value, path=()):
    """The path of every value in a config."""
    yield path
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in parts:
        yield from nodes(part, (*path, key))


@st.composite
def mutated_configs(draw):
    """A right config with up to four values deleted, replaced, renamed, wrapped or swapped."""
    config = {"root": deepcopy(draw(st.sampled_from(CONFIGS)))}
    for _ in range(draw(st.integers(0, 3))):
        *above, key = draw(st.sampled_from(list(nodes(config))[1:]))
        parent = config
        for part in above:
            parent = parent[part]
        how = draw(st.sampled_from(["delete", "replace", "rename", "wrap", "nest", "swap", "text"]))
        if how == "delete":
            del parent[key]
            config.setdefault("root", None)
        elif how == "rename" and isinstance(parent, dict) and above:
            parent[draw(texts)] = parent.pop(key)
        elif how == "swap":
            other = draw(st.sampled_from(list(nodes(BASE))))
            value = BASE
            for part in other:
                value = value[part]
            parent[key] = deepcopy(value)
        else:
            ways = {"wrap": lambda value: [value], "nest": lambda value: {draw(texts): value}, "text": str}
            parent[key] = ways[how](parent[key]) if how in ways else draw(odd_values)
    return config["root"]


def cut(text):
    """A text with a piece of it cut out or replaced by another."""
    places = st.integers(0, len(text))
    bits = st.sampled_from(
        ["", "\t", "*a", "&a ", "!!", "{", "]", ": ", "\n", "- ", "?", "|", "'", '"', "%", "\\"]
    )
    return st.builds(
        lambda a, b, bit: text[: min(a, b)] + bit + text[max(a, b) :], places, places, bits | texts
    )


@st.composite
def config_files(draw):
    """Mutated configs as YAML, those with torn text, and arbitrary bytes."""
    kind = draw(st.sampled_from(["values"] * 8 + ["torn", "bytes"]))
    if kind == "bytes":
        return draw(
            st.binary(max_size=60) | st.text(max_size=40).map(lambda t: t.encode("utf-8", "surrogatepass"))
        )
    values = draw(mutated_configs())
    text = dump_yaml(values) if isinstance(values, dict) else dump_yaml({"root": values})
    if kind == "torn":
        text = draw(cut(text[: draw(st.integers(0, 400))]))
    return text.encode("utf-8", "surrogatepass")


keys = st.sampled_from([".".join(map(str, path)) for path in nodes(BASE) if path])
likely = st.builds("{}={}".format, keys, odd_values.map(repr))
overrides = (
    st.just([])
    | st.lists(likely, max_size=2)
    | st.lists(likely | texts | st.builds("{}={}".format, texts, texts), max_size=1)
)


@fuzzed(config_files(), overrides)
def test_a_config_is_right_or_refused(folder, content, given_overrides):
    Path("c.yml").write_bytes(content)
    try:
        config = load_config("c.yml", given_overrides, section_faults)
        check_sections(config)
    except SeverError as error:
        assert_can_be_shown(error)
    else:
        assert_can_be_shown(dump_yaml(config.values))


def assert_can_be_shown(message):
    text = str(message)
    assert text
    text.encode("utf-8")
    assert len(text) < 20_000


# -------------------------------------------------------------------------------------------- CSVs

images = st.sampled_from(["a.png", "b.png", "c_1.png"])
good_runs = st.sampled_from(["", "1 1", "1 2", "3 4 9 1", "9 2 1 1", "24 1", "1 24"])
runs_near_by = st.lists(st.integers(-1, 30), max_size=6).map(lambda runs: " ".join(map(str, runs)))
fields = (
    images
    | good_runs
    | runs_near_by
    | st.sampled_from(
        ["1", "4", " ", "1 ", "a.png_1", "../a.png", "/etc/passwd", ".", "'", '"', '""', "9" * 30]
    )
    | st.integers().map(str)
    | texts
)
good_rows = st.tuples(images, st.integers(1, 4).map(str), good_runs | runs_near_by)
separators = st.sampled_from([*",,,,,,,,", ";", "\t", ",,", '"', "\n", "\r", "\0", "\ufeff", '",'])
HEADERS = [
    "",
    TODAY.lower(),
    TODAY.replace(",", ";"),
    "ImageId,GroupId\n",
    "ImageId,ImageId,ClassId\n",
    '"ImageId\n',
]


@st.composite
def csv_files(draw):
    """Rows of likely and unlikely fields below a right or wrong header, and arbitrary bytes."""
    if draw(st.integers(0, 19)) == 0:
        return draw(st.binary(max_size=80))
    head = draw(st.sampled_from([TODAY, TODAY, TODAY, OF_2019, OF_2019, None])) or draw(
        st.sampled_from(HEADERS)
    )
    text = head
    ends = draw(st.sampled_from(["\n", "\n", "\r\n", "\r", "\n\n"]))
    for _ in range(draw(st.integers(0, 8))):
        name, class_id, runs = draw(good_rows)
        row = [f"{name}_{class_id}", runs] if head == OF_2019 else [name, class_id, runs]
        joint = ","
        if draw(st.integers(0, 4)) == 0:
            row[draw(st.integers(0, len(row) - 1))] = draw(fields)
        if draw(st.integers(0, 19)) == 0:
            joint = draw(separators)
        text += joint.join(row) + ends
    encoding = draw(st.sampled_from(["utf-8"] * 8 + ["utf-8-sig", "utf-8-sig", "utf-16", "latin-1"]))
    return text.encode(encoding, "replace")


@fuzzed(csv_files(), st.integers(1, 5), st.booleans())
def test_a_csv_is_read_or_its_faults_are_named(folder, content, classes, only_named):
    (folder / "train.csv").write_bytes(content)
    scan = scan_table(folder, "train.csv", "train_images", classes, only_named=only_named)
    for fault in scan.faults:
        assert fault.sort in ERRORS
        assert_can_be_shown(fault)
    for index, spans in enumerate(map(scan.table.of_image, range(len(scan.table)))):
        assert all(encode(mask) is not None for mask in scan.table.masks(index)), spans
    for fault in scan_training(folder, None, None, classes, groups="train.csv").faults:
        assert_can_be_shown(fault)


# ------------------------------------------------------------------------------------------- codec

shapes = st.tuples(st.integers(1, 12), st.integers(1, 12))
words = st.integers(-3, 160).map(str) | st.sampled_from(
    ["1.0", "1e3", "٣", "²", "0x1", str(2**63), "9" * 400, "+1"]
)
run_texts = (
    st.lists(words, max_size=8).map(" ".join) | st.text(max_size=12) | st.text("0123456789 \t-", max_size=30)
)


@fuzzed(run_texts, shapes)
def test_runs_are_drawn_or_refused(folder, runs, shape):
    try:
        spans = parse(runs, shape)
    except RunsError as error:
        refused = error
    else:
        refused = None
    if refused:
        assert f"runs_{refused.sort}" in ERRORS
        assert_can_be_shown(ascii(refused))
        with pytest.raises(RunsError):
            decode(runs, shape)
        return
    mask = decode(runs, shape)
    assert mask.shape == shape
    assert mask.sum() == (spans[:, 1] - spans[:, 0]).sum()
    assert np.array_equal(decode(encode(mask), shape), mask)


@fuzzed(shapes, st.randoms(use_true_random=False), st.floats(0, 1))
def test_a_mask_comes_back_from_its_runs(folder, shape, random, share):
    mask = np.array([random.random() < share for _ in range(shape[0] * shape[1])], np.uint8).reshape(shape)
    runs = encode(mask)
    assert np.array_equal(decode(runs, shape), mask)
    assert np.array_equal(decode(" ".join(reversed_pairs(runs)), shape), mask)


def reversed_pairs(runs):
    numbers = runs.split()
    return [word for at in range(len(numbers) - 2, -2, -2) for word in numbers[at : at + 2]]
