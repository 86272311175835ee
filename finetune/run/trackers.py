"""The trackers a run may report to beside its own metrics.jsonl: whether they are installed."""

import sys
from collections.abc import Sequence
from importlib.util import find_spec

from finetune.errors import PlaceError

__all__ = ["check_trackers"]


def check_trackers(names: Sequence[str]) -> None:
    """Check that each tracker's package is there, before anything is loaded; none is imported.

    Args:
        names: as `training.report_to` lists them; each is its package's name too.

    Raises:
        PlaceError: one is not installed.
    """
    missing = [name for name in names if find_spec(name) is None]
    if missing:
        raise PlaceError(
            f"`training.report_to`: {' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed.\n"
            f"  Install the trackers: {sys.executable} -m pip install -c constraints.txt -e '.[track]'\n"
            "  Or report to none: training.report_to=[]"
        )
