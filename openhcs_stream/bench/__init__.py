"""How fast this machine can be, how fast this library is on it, and the original's scheme beside.

Every figure is a ratio inside one round: the paths that are compared run in blocks, there and back
again (A B C C B A), so that whatever else the machine does meets them alike. A ratio is the median
of several rounds, with its quartiles; rounds that disagree too much make a run that is not
believable, and it says so.
"""

from __future__ import annotations

from openhcs_stream.bench._report import Figure, Report, flat
from openhcs_stream.bench._run import DEMANDS, run

__all__ = ["DEMANDS", "Figure", "Report", "flat", "run"]
