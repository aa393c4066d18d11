from __future__ import annotations

import json

import pytest

from riverrun.models.base import Corrupt
from riverrun.store.records import SessionRecord, SessionState, advance, token_digest

S = SessionState


def test_a_record_of_another_schema_is_refused_with_both_versions():
    raw = json.loads(SessionRecord("a", "g").to_json()) | {"schema": 7}
    with pytest.raises(Corrupt, match="schema version 7, this program reads 1"):
        SessionRecord.from_json(json.dumps(raw))


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"schema": 1}', '{"schema": 1, "id": "a", "graph": "g", "state": "asleep"}',
     '{"schema": 1, "id": "a", "graph": "g", "colour": 3}', '{"schema": 1, "id": "a", "graph": "g", "ports": 3}'],
)  # fmt: skip
def test_what_is_no_record_is_corrupt(text):
    with pytest.raises(Corrupt):
        SessionRecord.from_json(text)


@pytest.mark.parametrize("now", list(S))
@pytest.mark.parametrize("to", list(S))
def test_only_legal_transitions(now, to):
    legal = {
        (S.OPENING, S.RUNNING), (S.RUNNING, S.DRAINING),
        *((s, end) for s in (S.OPENING, S.RUNNING, S.DRAINING) for end in (S.CLOSED, S.FAILED, S.SUSPENDED)),
        *((S.SUSPENDED, to) for to in (S.OPENING, S.CLOSED, S.FAILED)),
    }  # fmt: skip
    if (now, to) in legal:
        assert advance(now, to) is to
    else:
        with pytest.raises(Corrupt, match=f"from {now.value} to {to.value}"):
            advance(now, to)


def test_a_token_is_kept_as_its_digest():
    assert token_digest("secret") == token_digest("secret") != token_digest("other")
    assert len(token_digest("secret")) == 64
