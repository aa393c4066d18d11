"""The gRPC face: `riverrun.proto`, the stubs generated from it, and frames on the wire."""

DEFAULT_PORT = 50051
"""Where a service listens, and a client looks for one, unless told otherwise."""
