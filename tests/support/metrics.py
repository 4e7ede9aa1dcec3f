"""What /metrics of the status listener says, as a Prometheus server reads it."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from support.serve import Response


def samples_in(answer: Response) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Values by the sample's name and its sorted labels."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }
