"""What the settings of a project import that OpenTelemetry traces."""

from typing import Any

import gevent
from opentelemetry import trace
from opentelemetry.instrumentation.django import DjangoInstrumentor
from opentelemetry.instrumentation.pymysql import PyMySQLInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

spans = InMemorySpanExporter()


class Troubled:
    """An exporter that switches greenlets, as one that sends does, and then fails."""

    def export(self, finished: Any) -> None:
        gevent.sleep(0.001)
        spans.export(finished)
        raise OSError("the collector is down")

    def shutdown(self) -> None:
        pass


exporter: Any = Troubled()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)
DjangoInstrumentor().instrument()
PyMySQLInstrumentor().instrument()
