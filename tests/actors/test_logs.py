"""One form of log line in every process: fields, and nothing that was not meant for a log."""

import json
import logging
import sys

import pytest

from riverrun.actors.logs import JsonFormatter, TextFormatter, _print_lines, about, as_json, set_up
from riverrun.configs import load_service
from riverrun.configs.telemetry import LogConfig
from riverrun.models.base import BadRequest
from riverrun.store.records import SessionRecord


def record(message="made %d chunks", *args, extra=None, exc_info=None):
    logger = logging.Logger("riverrun.test")
    return logger.makeRecord("riverrun.test", logging.INFO, __file__, 1, message, args, exc_info, extra=extra)


def test_a_json_line_has_the_fields_and_no_other_extras():
    extra = about("s1/gen", seq=7, epoch=2, prompt="a secret", token="t0k3n")
    line = json.loads(JsonFormatter().format(record("made %d chunks", 3, extra=extra)))
    assert line["message"] == "made 3 chunks"
    assert (line["session"], line["stage"], line["seq"], line["epoch"]) == ("s1", "gen", 7, 2)
    assert (line["level"], line["logger"]) == ("info", "riverrun.test")
    assert line["time"].endswith("+00:00")
    assert not {"prompt", "token"} & set(line)


def test_a_record_says_whose_session_it_is():
    session = SessionRecord("s1", "g", epoch=3, tenant="acme", params={"gen": {"prompt": "a secret"}})
    line = JsonFormatter().format(record("session %s is open", "s1", extra=session.about))
    assert json.loads(line) | {"session": "s1", "graph": "g", "epoch": 3, "tenant": "acme"} == json.loads(line)
    assert "secret" not in line


def test_an_exception_stays_on_one_json_line():
    try:
        raise ValueError("first\nsecond")
    except ValueError:
        line = JsonFormatter().format(record("failed", exc_info=sys.exc_info()))
    assert "\n" not in line
    assert json.loads(line)["traceback"].endswith("ValueError: first\nsecond")


def test_a_text_line_ends_with_the_fields():
    line = TextFormatter().format(record("failed", extra=about("s1/gen", seq=0, epoch=1)))
    assert line.endswith("info riverrun.test: failed [session=s1 stage=gen seq=0 epoch=1]")
    assert TextFormatter().format(record("plain")).endswith("riverrun.test: plain")


def test_what_another_process_prints_is_wrapped_and_its_json_is_not():
    own = '{"message": "hello"}'
    assert as_json(own, 5) == own
    assert json.loads(as_json("a library's\tline", 5)) | {"message": "a library's\tline", "pid": 5} == json.loads(
        as_json("a library's\tline", 5)
    )


def test_lines_of_actors_come_out_and_ray_s_own_do_not(capsys):
    _print_lines({"pid": "autoscaler", "lines": ["Node status"]})
    _print_lines({"pid": 7, "lines": ['{"message": "one"}', "two"]})
    said = [json.loads(line)["message"] for line in capsys.readouterr().err.splitlines()]
    assert said == ["one", "two"]


@pytest.fixture
def loggers():
    """Root and ours, put back as they were."""
    both = [logging.getLogger(), logging.getLogger("riverrun")]
    before = [(each.handlers[:], each.level) for each in both]
    yield
    for each, (handlers, level) in zip(both, before, strict=True):
        each.handlers[:] = handlers
        each.setLevel(level)


@pytest.mark.usefixtures("loggers")
def test_the_level_is_ours_and_libraries_say_nothing_below_info(capsys):
    set_up(LogConfig("json", "debug"))
    logging.getLogger("riverrun.actors.stage").debug("ours")
    logging.getLogger("library").debug("theirs")
    set_up(LogConfig("json", "warning"))
    logging.getLogger("riverrun.actors.stage").info("too low")
    logging.getLogger("library").error("theirs")
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [(line["logger"], line["message"]) for line in lines] == [
        ("riverrun.actors.stage", "ours"),
        ("library", "theirs"),
    ]


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("log.format=xml", "log.format must be one of text, json, got 'xml'"),
        ("log.level=loud", "log.level must be one of debug, info, warning, error, got 'loud'"),
        ("trace.every=-1", "trace.every must not be negative"),
        ("trace.every=5", "where should spans go?"),
        ("metrics_port=70000", "metrics_port must be 0..65535 or null, got 70000"),
    ],
)
def test_what_can_not_be_is_refused(override, says):
    with pytest.raises(BadRequest, match=says.replace("?", r"\?")):
        load_service(None, [override])
