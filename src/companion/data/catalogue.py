"""All sets that the chapters use, for the page on data and `companion data`."""

from __future__ import annotations

from companion.data.images import IMAGE_SETS, Source
from companion.data.signals import SIGNAL_SETS, SignalSource
from companion.data.surveillance import VIDEO_SETS, VideoSource
from companion.data.trajectories import TRACK_SETS, TrackSource


def catalogue() -> dict[str, Source | SignalSource | TrackSource | VideoSource]:
    """Every set by name: images, signals that are no images of those, tracks, video.

    Each has `title`, `where` (below the data root; "" if a dependency bundles it), `licence`
    and `get`.
    """
    return {**IMAGE_SETS, **(SIGNAL_SETS | IMAGE_SETS), **TRACK_SETS, **VIDEO_SETS}
