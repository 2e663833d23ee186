"""All sets that the chapters use, for the page on data and `companion data`."""

from __future__ import annotations

from companion.data.images import IMAGE_SETS
from companion.data.root import DataSource
from companion.data.signals import SIGNAL_SETS
from companion.data.surveillance import VIDEO_SETS
from companion.data.trajectories import TRACK_SETS


def catalogue() -> dict[str, DataSource]:
    """Every set by name: images, signals that are no images of those, tracks, video."""
    signals: dict[str, DataSource] = {**SIGNAL_SETS, **IMAGE_SETS}
    return {**IMAGE_SETS, **signals, **TRACK_SETS, **VIDEO_SETS}
