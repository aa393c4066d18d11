"""Puts a source's pictures into a stream while somebody else takes what comes out."""

from __future__ import annotations

import threading
from collections.abc import Callable
from itertools import islice

from riverrun.client.errors import Error
from riverrun.client.sources import Newest, Picture, Source
from riverrun.client.sync import Stream


class Pump:
    """A thread that sends pictures, as many as the stream lets it, and finishes the stream after the last one.

    source: a live one loses what is not taken in time (`latest`), any other nothing. frames: at most so many of it.
    expect: told of each picture just before it goes.
    """

    def __init__(
        self, stream: Stream, source: Source, frames: int | None, expect: Callable[[Picture], object], port: str
    ) -> None:
        self.sent = 0
        self._newest = Newest(source) if source.is_live else None
        self._stream, self._source, self._expect, self._port = stream, source, expect, port
        self._frames = frames
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="pump", daemon=True)
        self._thread.start()

    @property
    def dropped(self) -> int:
        """Of a live source, pictures that were never sent."""
        return self._newest.dropped if self._newest else 0

    def end(self) -> None:
        """After the stream's last frame. Raises SourceError where the source broke off: what came before went in."""
        self._thread.join()
        if self._error is not None and not isinstance(self._error, Error):  # whoever takes frames is told the stream's
            raise self._error

    def _run(self) -> None:
        try:
            for picture in islice(self._newest or self._source, self._frames):
                self._expect(picture)
                self._stream.send(picture.array, picture.seconds, self._port)
                self.sent += 1
        except Exception as error:  # noqa: BLE001 - raised by `end`, in the thread of whoever takes frames
            self._error = error
        finally:
            self._finish()

    def _finish(self) -> None:
        try:
            self._stream.finish()
        except Exception as error:  # noqa: BLE001 - as in `_run`
            self._error = self._error or error
