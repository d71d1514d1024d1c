"""Progress of steps that take long: a bar on a terminal, else a line now and then.

There is one bar at a time, that of the outermost step. In logs, notebooks and jobs of a multirun, a
line says how far it is; steps of a few seconds have none. Rich reads the environment variable
TTY_INTERACTIVE: with 0, a terminal has lines, too.
"""

import logging
import time
from collections.abc import Iterable
from functools import partial
from operator import length_hint
from types import SimpleNamespace
from typing import Any

from rich.console import Console
from rich.progress import Progress, TimeRemainingColumn

log = logging.getLogger(__name__)

stdout = SimpleNamespace(write=partial(print, end="", flush=True))
"""Where runs log to: what `sys.stdout` is at the time. While a bar is shown, that is above it."""

_is_shown = False


def progress(items: Iterable[Any], description: str, total: int = 0) -> Any:
    """A generator of the items, while a bar or lines show how many are done.

    Arguments:
        description: what is done; {} stands for the item.
        total: how many items there are; by default their length, where they have one.
    """
    global _is_shown
    if _is_shown:
        yield from items
        return
    console = Console()
    _is_shown = True
    try:
        with Progress(
            console=console,
            # A single item may take minutes.
            speed_estimate_period=3600,
            transient=True,
            disable=not console.is_interactive,
        ) as bar:
            number = bar.add_task("", total=max(total, length_hint(items)) or None)
            (step,) = bar.tasks
            due = time.monotonic() + 5
            for item in items:
                bar.update(number, description=description.format(item))
                if bar.disable and time.monotonic() > due:
                    due = time.monotonic() + 30
                    # Notebooks do not show the log.
                    say = print if console.is_jupyter else log.info
                    say(
                        f"{step.description}: {step.completed} of {step.total or '?'}, "
                        f"{TimeRemainingColumn().render(step)} left"
                    )
                yield item
                bar.advance(number)
    finally:
        # Also where the loop over the items ends early.
        _is_shown = False
