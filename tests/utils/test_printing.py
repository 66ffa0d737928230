"""What others wrote, in files or as their names, cannot move the cursor, forge a line or end a command."""

import logging
import os
import re

import pytest
import torch
from runs import done, mistake, sever, steel_config, write_config
from sheets import draw_data
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sever.utils.errors import ConfigError
from sever.utils.logger import check_logging_file, log_to_console, log_to_run, print_lines
from sever.utils.printing import printable
from sever.utils.progress import progress
from sever.utils.tensorboard_writer import TensorboardWriter

HOSTILE = "a\x1b[2K\r\nsever: all is well\x9b\u202e\u2028\udcff"
ESCAPED = r"a\x1b[2K\r\nsever: all is well\x9b\u202e\u2028\udcff"


def is_safe(text):
    """Whether a printed text holds nothing that could act on a terminal, nor a line that is forged."""
    return printable(text, keep="\n") == text and not re.search("^sever: all is well", text, re.MULTILINE)


@pytest.mark.parametrize("text", ["", "größe 3 × 4 …", "x.jpg", "钢板", "naïve 🏭", "\\x1b"])
def test_other_text_is_printed_as_it_is(text):
    assert printable(text) == text


def test_control_characters_are_escaped_once():
    assert printable(HOSTILE) == printable(printable(HOSTILE)) == ESCAPED
    assert printable("a\tb\nc\r", keep="\n\t") == "a\tb\nc\\r"


def test_each_line_of_an_error_stays_one_line():
    assert str(ConfigError(f"'{HOSTILE}' is unknown", "  Known: b")) == f"'{ESCAPED}' is unknown\n  Known: b"


def test_an_import_path_in_a_checkpoint_cannot_forge_the_message_about_it(tmp_path):
    config = steel_config(tmp_path, tmp_path) | {"loss": f"evil.{HOSTILE.replace(chr(0xDCFF), '')}"}
    state = {"arch": "Unet", "epoch": 1, "state_dict": {}, "optimizer": None, "config": config, "format": 1}
    torch.save(state, tmp_path / "evil.pth")
    message = mistake("test", "-r", tmp_path / "evil.pth", "-d", "cpu")
    assert is_safe(message)
    assert r"loss.type: 'evil.a\x1b[2K\r\nsever: all is well" in message
    assert len(message.splitlines()) == 3


@pytest.mark.parametrize("debug", [[], ["--debug"]])
def test_a_name_out_of_a_file_cannot_forge_an_error_or_its_traceback(tmp_path, debug):
    draw_data(tmp_path, {"a.png": [1], "b.png": [2]})
    (tmp_path / "train.csv").write_text(
        'ImageId,ClassId,EncodedPixels\n"a\x1b[2K\nsever: all is well",1,1 1\n'
    )
    path = write_config(tmp_path / "c.yml", steel_config(tmp_path, tmp_path))
    result = sever("train", "-c", path, "--dry-run", *debug)
    assert result.exit_code == 2
    assert is_safe(result.stderr)
    assert r"row 2: image 'a\x1b[2K\nsever: all is well' is not in" in result.stderr
    assert ("Traceback" in result.stderr) == bool(debug)


def test_a_report_is_printed_without_control_characters(tmp_path):
    submission = tmp_path / "s.csv"
    submission.write_text('ImageId_ClassId,EncodedPixels\n"a\x1b[2K\nb.jpg_1",no runs\n')
    result = sever("check", submission, "--classes", "4")
    assert result.exit_code == 2
    assert is_safe(result.output)
    assert r"a\x1b[2K\nb.jpg" in result.output


@pytest.mark.parametrize("args", [["-c", "{}"], ["-c", "c.yml", "{}"], ["{}"]])
def test_an_argument_that_is_no_text_is_named_in_a_message(args):
    name = os.fsdecode(b"\xff\x1b.yml")
    message = mistake("train", *(arg.format(name) for arg in args))
    assert r"\udcff\x1b.yml" in message
    assert is_safe(message)


@pytest.mark.parametrize("debug", [[], ["--debug"]])
def test_an_error_that_nobody_expected_is_escaped(monkeypatch, debug):
    def fail(*_):
        raise OSError(5, "Input/output error", HOSTILE)

    monkeypatch.setattr("sever.commands.synth.draw_dataset", fail)
    result = sever("synth", "new", *debug)
    assert result.exit_code == 1
    assert is_safe(result.stderr)
    assert f"sever: {ESCAPED}: Input/output error" in result.stderr


def test_lines_are_printed_as_lines(capsys):
    print_lines([f"image {HOSTILE}", "next"])
    assert capsys.readouterr().out == f"image {ESCAPED}\nnext\n"


LOGGING = """
version: 1
formatters: {own: {format: "own %(message)s"}}
handlers:
  file: {class: logging.FileHandler, filename: own.log, formatter: own, encoding: utf-8}
loggers: {sever: {level: DEBUG, handlers: [file], propagate: false}}
"""


def test_a_log_file_may_lie_in_a_folder_below_and_other_loggers_stay(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "logging.yml").write_text(LOGGING.replace("own.log", "deep/below/own.log"))
    logger = logging.getLogger("sever.elsewhere")
    check_logging_file()
    log_to_run(tmp_path / "logs")
    try:
        logger.warning("heard")
    finally:
        log_to_console()
    assert (tmp_path / "logs/deep/below/own.log").read_text() == "own heard\n"


@pytest.mark.parametrize("own", [None, LOGGING])
def test_log_files_hold_no_control_characters_whatever_logging_yml_says(tmp_path, monkeypatch, capsys, own):
    monkeypatch.chdir(tmp_path)
    if own:
        (tmp_path / "logging.yml").write_text(own)
    log_to_run(tmp_path)
    logger = logging.getLogger("sever.own")
    try:
        logger.warning("Read %s\n\tin %d s", HOSTILE, 3)
        logger.warning("not for its arguments: %d", "x")  # is left out, as logging does
        try:
            raise ValueError(HOSTILE)
        except ValueError:
            logger.exception("Failed")
    finally:
        log_to_console()
    text = (tmp_path / ("own.log" if own else "info.log")).read_text(encoding="utf-8")
    assert printable(text, keep="\n\t") == text
    assert f"Read {ESCAPED}\n\tin 3 s" in text
    assert "Traceback" in text
    assert "\x1b" not in capsys.readouterr().out


def test_the_label_of_a_progress_bar_is_escaped(monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    assert list(progress([1, 2], f"a{HOSTILE}")) == [1, 2]
    assert "\x1b[2K" not in capsys.readouterr().err


def test_tensorboard_gets_no_control_characters(tmp_path):
    writer = TensorboardWriter(tmp_path)
    writer.add_scalar(f"loss {HOSTILE}", 1.0)
    writer.add_text("note", f"one\ntwo {HOSTILE}")
    writer.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert events.Tags()["scalars"] == [f"loss {ESCAPED}"]
    (text,) = events.Tensors("note/text_summary")
    assert b"\x1b" not in text.tensor_proto.string_val[0]


def test_events_that_cannot_be_closed_cost_a_warning(tmp_path, monkeypatch, caplog):
    writer = TensorboardWriter(tmp_path)
    writer.add_scalar("loss", 1.0)
    close = writer._writer.close

    def refused():
        close()
        raise OSError(122, "Disk quota exceeded")

    monkeypatch.setattr(writer._writer, "close", refused)
    monkeypatch.setattr(logging.getLogger("sever"), "propagate", True)
    writer.close()
    assert "events cannot be written: Disk quota exceeded. The training goes on" in caplog.text


def test_synth_prints_its_folder_escaped(tmp_path):
    assert is_safe(done("synth", tmp_path / "a\x1bb", "-n", "1", "--size", "16", "16"))
