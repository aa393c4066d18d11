"""The gRPC face: `riverrun.proto`, the stubs generated from it, and frames on the wire."""

DEFAULT_PORT = 50051
"""Where a service listens, and a client looks for one, unless told otherwise."""

OLD = ".old"
"""After the name of an actor that a new life of it has taken the place of, while sessions leave it."""
