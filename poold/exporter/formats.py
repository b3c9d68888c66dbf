"""Which exposition format a scraper gets. Pure; whatever an Accept header says, there is an answer.

prometheus_client reads the header itself, but takes the first format that it knows for the best, overlooks weights and upper case,
writes the version it was asked for into its answer, and raises ValueError for a version that is no number. So it is asked for
one of the two formats by its proper name, and never sees a header.
"""

import re
from enum import StrEnum

_OPENMETRICS = "application/openmetrics-text"
# What is written is valid in each of them; no version asks for any.
_OPENMETRICS_VERSIONS = ("", "1.0.0")
_TEXT_VERSIONS = ("", "0.0.4", "1.0.0")
_WEIGHT = re.compile(r"0(\.[0-9]{0,3})?|1(\.0{0,3})?")


class Format(StrEnum):
    """A format, as prometheus_client is asked for it."""

    TEXT = "text/plain; version=0.0.4"
    OPENMETRICS = f"{_OPENMETRICS}; version=1.0.0"


def negotiated(accept: str) -> Format:
    """Return the format that an Accept header likes best (RFC 9110, 12.5.1): OpenMetrics where it is named and not liked less than text.

    Text where neither is wanted, as for every header that cannot be understood: a scrape that says too much is better than none.
    """
    text = openmetrics = 0.0
    for part in accept.split(","):
        kind, version, weight = _media_range(part)
        if kind == _OPENMETRICS and version in _OPENMETRICS_VERSIONS:
            openmetrics = max(openmetrics, weight)
        elif kind in ("*/*", "text/*") or (kind == "text/plain" and version in _TEXT_VERSIONS):
            text = max(text, weight)
    return Format.OPENMETRICS if openmetrics > 0 and openmetrics >= text else Format.TEXT


def _media_range(part: str) -> tuple[str, str, float]:
    """Return type, version ("" for none) and weight of one of an Accept header's parts; 0 for a weight that is none."""
    kind, *parameters = part.split(";")
    values = {name.strip().lower(): value.strip().strip('"') for name, _, value in (each.partition("=") for each in parameters)}
    weight = values.get("q", "1")
    return kind.strip().lower(), values.get("version", ""), float(weight) if _WEIGHT.fullmatch(weight) else 0.0
