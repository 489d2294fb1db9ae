"""A process that plans with LangSmith's tracing on, as the environment says.

Run by `python -m tests.nodes.traced OUTCOME [SPANS]`: the outcome of the step is written to OUTCOME; with SPANS, what
OpenTelemetry exports is written there.
"""

import json
import sys
from pathlib import Path

from langchain_core.messages import HumanMessage
from langchain_core.tracers.langchain import wait_for_all_tracers
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from tests.nodes.world import make_engine, make_graph


def main(outcome: Path, spans: Path | None) -> None:
    exporter = InMemorySpanExporter()
    if spans is not None:
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        trace.set_tracer_provider(provider)
    agent = make_graph(make_engine()).compile(name="agent")
    result = agent.invoke({"messages": [HumanMessage("go")]})
    wait_for_all_tracers()
    outcome.write_text(json.dumps(result["tts"]["outcome"]), encoding="utf-8")
    if spans is not None:
        told = [json.loads(span.to_json()) for span in exporter.get_finished_spans()]
        spans.write_text(json.dumps(told), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else None)
