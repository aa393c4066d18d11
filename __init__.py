"""riverrun: a streaming service for unbounded video streams through causal models."""

__version__ = "0.1.0"
