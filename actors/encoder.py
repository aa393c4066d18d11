"""The prompt encoder as an actor of its own, shared by all sessions: stateless but for a bounded cache."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable

import numpy as np
import ray

from riverrun.actors.health import Look, StageHealth
from riverrun.actors.loading import build, carried, print_to_stderr, set_threads, start_actor
from riverrun.actors.logs import set_up
from riverrun.configs import ModelConfig
from riverrun.configs.telemetry import ActorSetup
from riverrun.models.base import BadRequest

CACHE_BYTES = 256 << 20
"""Thirty embeddings of the released encoder (512 x 4096 float32)."""


class EmbeddingCache:
    """The embeddings of the prompts used last, at most `max_bytes` of them. Safe for any thread."""

    def __init__(self, encode: Callable[[str], np.ndarray], max_bytes: int = CACHE_BYTES) -> None:
        self._encode, self._max_bytes = encode, max_bytes
        self._lock = threading.Lock()
        self._held: OrderedDict[str, np.ndarray] = OrderedDict()
        self.nbytes = self.misses = 0

    def get(self, text: str) -> np.ndarray:
        """float32 [text_len, dim], read-only. Raises BadRequest for an empty text, or none at all."""
        if not isinstance(text, str):
            raise BadRequest(f"the prompt must be a text, got {text!r}")
        if not text.strip():
            raise BadRequest("the prompt is empty; say what to show")
        with self._lock:  # also serialises the encoder, which has one set of weights
            if text not in self._held:
                self._keep(text, self._encode(text))
            self._held.move_to_end(text)
            return self._held[text]

    def check(self) -> None:
        """Raises AssertionError where the bytes counted are not those held."""
        with self._lock:
            held = sum(embedding.nbytes for embedding in self._held.values())
            assert held == self.nbytes, (held, self.nbytes)

    def _keep(self, text: str, embedding: np.ndarray) -> None:
        embedding.setflags(write=False)
        self._held[text] = embedding
        self.nbytes += embedding.nbytes
        self.misses += 1
        while self.nbytes > self._max_bytes and len(self._held) > 1:
            self.nbytes -= self._held.popitem(last=False)[1].nbytes


class EncoderActor:
    """One process with the encoder's weights, loaded by `load`."""

    def __init__(self, config: ModelConfig, incarnation: str, setup: ActorSetup) -> None:
        self._config, self._incarnation, self._setup = config, incarnation, setup
        self._node = ray.get_runtime_context().get_node_id()
        self._loading = threading.Lock()
        self._cache: EmbeddingCache | None = None

    @carried
    def load(self) -> None:
        """Loads the encoder, once. Raises BadRequest (the configuration)."""
        with self._loading:
            if self._cache is None:
                self._cache = self._loaded()

    def _loaded(self) -> EmbeddingCache:
        print_to_stderr()
        set_up(self._setup.telemetry.log)
        set_threads(self._config.actor.threads)
        encoder = build(self._config)
        return EmbeddingCache(lambda text: np.asarray(encoder.encode([text])[0], np.float32))

    @carried
    def encode(self, text: str) -> np.ndarray:
        return self._embeddings.get(text)

    def check(self) -> None:
        self._embeddings.check()

    @property
    def _embeddings(self) -> EmbeddingCache:
        assert self._cache is not None, "nobody calls it before it is loaded"
        return self._cache

    def look(self) -> Look:
        """As a stage's: it holds its cache and no sessions."""
        cache = self._embeddings
        sizes = (cache.nbytes, cache.nbytes)
        who = {"pid": os.getpid(), "node": self._node}
        return Look(StageHealth(self._incarnation, 0, 0, *sizes, cache.misses, 0.0, 0.0, **who))


def start_encoder(setup: ActorSetup, config: ModelConfig, incarnation: str, name: str = "") -> ray.actor.ActorHandle:
    """A new encoder actor, loading its weights."""
    groups = {"encode": 4, "control": 2}
    return start_actor(EncoderActor, groups, {"encode": "encode"}, setup, config, incarnation, name)
