import gc

import numpy as np

from riverrun.kernels.noise import normal
from riverrun.kernels.shared import SharedCache, content_key


class Entry:
    pass


def test_entries_live_as_long_as_their_users() -> None:
    shared, built = SharedCache(), []

    def build() -> Entry:
        built.append(1)
        return Entry()

    first, second = shared.get("a", build), shared.get("a", build)
    assert first is second
    assert len(built) == len(shared) == 1
    del first, second
    gc.collect()
    assert len(shared) == 0


def test_keys_are_made_of_content() -> None:
    a = np.arange(6, dtype=np.float32)
    assert content_key("x", a) == content_key("x", a.copy())
    assert (
        len({content_key("x", a), content_key("x", a + 1), content_key("xa"), content_key("x", a.view(np.int32))}) == 4
    )


def test_noise_depends_on_its_name_alone() -> None:
    one = normal((3, 4), seed=7, chunk=5, draw=2)
    normal((100,), seed=7, chunk=6, draw=0)
    assert (one == normal((3, 4), seed=7, chunk=5, draw=2)).all()
    others = [normal((3, 4), seed=s, chunk=c, draw=d) for s, c, d in ((8, 5, 2), (7, 4, 2), (7, 5, 1), (7, 2, 5))]
    assert not any((one == other).any() for other in others)
