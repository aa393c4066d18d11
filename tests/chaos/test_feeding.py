"""What a client that feeds its session keeps and sends again."""

import itertools

import numpy as np

from .feeding import KEEP, Feed
from .tiny import MODELS, fed, row
from .workloads import picked, tables


def numbers(parts):
    return [(part.port, part.frame) for part in parts]


def test_what_was_not_said_to_be_safe_is_sent_again_and_no_more_is_sent():
    feed = Feed({"once": iter([np.zeros(3)]), "video": itertools.repeat(np.zeros((2, 2, 3), np.uint8))}, ticks=10)
    sent = numbers(feed.more())
    assert sent == [("once", 0), *(("video", n) for n in range(KEEP))]
    assert feed.more() == []
    feed.safe("video", 6)
    feed.safe("once", 0)
    assert numbers(feed.unsafe()) == [("video", n) for n in range(7, KEEP)]
    more = feed.more()
    assert numbers(more) == [("video", n) for n in range(KEEP, KEEP + 7)]
    assert [part.pts for part in more] == [10 * part.frame for part in more]
    assert (feed.sent, feed.acked, feed.again) == (KEEP + 8, 8, KEEP - 7)


def test_every_row_that_has_no_end_is_streamed():
    works = tables()
    streamed = {MODELS[model].row.partition(" ")[0] for work in works for model in work.models if model in MODELS}
    named = {work.name for work in works}
    assert {"LongLive", "Ca2-VDM,", "ViD-GPT,", "EasyControl", "InfVSR", "InfiniteVGGT", "text", "Locret"} <= streamed
    assert {name for name in named if name.startswith("text ")} >= {"text jacobi", "text wedlm, sampled"}
    assert [work.name for work in picked(works, "wedlm, s; InfVSR, fed")] == ["InfVSR, fed", "text wedlm, sampled"]


def test_a_client_sends_what_the_row_is_fed():
    video = fed(row("InfVSR"), 3)["frames"]
    whole = np.concatenate([chunk.data for turn in (0, 1) for chunk in row("InfVSR").feed(3, turn)])
    assert (np.stack(list(itertools.islice(video, len(whole)))) == whole).all()
    assert list(fed(row("EasyControl"), 3)) == ["subject", "depth"]
    assert len(list(fed(row("Ca2-VDM"), 3)["first"])) == 1
