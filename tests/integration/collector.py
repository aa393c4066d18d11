"""Where the service of the tests sends its spans: an OTLP collector that keeps them."""

from concurrent import futures

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as otlp
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as otlp_rpc


class Collector(otlp_rpc.TraceServiceServicer):
    """Listens from its making until `stop`. address: for `trace.endpoint`."""

    def __init__(self):
        self._spans = []
        self._server = grpc.server(futures.ThreadPoolExecutor(2))
        otlp_rpc.add_TraceServiceServicer_to_server(self, self._server)
        self.address = f"http://127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def Export(self, request, context):
        for resource in request.resource_spans:
            process = attributes(resource.resource)["riverrun.process"]
            self._spans += [(process, span) for scope in resource.scope_spans for span in scope.spans]
        return otlp.ExportTraceServiceResponse()

    def spans(self, trace_id):
        """(process, span) of everything in this trace (hex)."""
        return [(process, span) for process, span in list(self._spans) if span.trace_id.hex() == trace_id]

    def stop(self):
        self._server.stop(None).wait(10)


def attributes(of):
    """Those of a resource or a span, as plain values."""
    return {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in of.attributes}
