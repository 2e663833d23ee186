"""Tracks of people and vehicles seen from above, and the windows that a forecaster gets.

`load_tracks("zara01")` reads a public set, `read_tracks("mine.csv", fps=25)` a table of your own;
`fill_gaps` interpolates short gaps of either, `cut_windows` cuts them into what is seen and what is
to be forecast, and `write_trajnetpp` writes forecasts in the format of trajnet++.

Public sets write the same thing in many ways: metres or pixels, rows or columns first, splines or
samples, 6, 10, 12 or 2 frames to a step. Here all of them become one table on one clock, with the
map to the reference picture where one is known.
"""

from companion.data.trajectories.gaps import fill_gaps
from companion.data.trajectories.sets import (
    ETH_UCY,
    FOLDER,
    TRACK_SETS,
    load_tracks,
    read_splines,
    track_names,
)
from companion.data.trajectories.table import read_tracks, write_trajnetpp
from companion.data.trajectories.tracks import Tracks, transform
from companion.data.trajectories.windows import TrajectoryWindows, cut_windows, join_windows

__all__ = [
    "ETH_UCY",
    "FOLDER",
    "TRACK_SETS",
    "Tracks",
    "TrajectoryWindows",
    "cut_windows",
    "fill_gaps",
    "join_windows",
    "load_tracks",
    "read_splines",
    "read_tracks",
    "track_names",
    "transform",
    "write_trajnetpp",
]
