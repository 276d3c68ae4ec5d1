"""Owns the progress of running jobs as the last lines of a terminal show it."""

from typing import NamedTuple

from daguerre.telemetry.lines import one_line

#: Characters of a full bar.
BAR = 24


class Step(NamedTuple):
    """How far a job is."""

    name: str  # of its model
    done: int
    steps: int
    seconds: float  # since it began

    def line(self, job_id: str, width: int) -> str:
        """As a line that fits in the terminal."""
        fraction = self.done / self.steps if self.steps else 0.0
        bar = "█" * round(BAR * fraction) + "░" * (BAR - round(BAR * fraction))
        text = f"{job_id[-8:]} {bar} {self.done}/{self.steps} {self.seconds:.0f} s {self.name}"
        return one_line(text)[: max(0, width - 1)]


class Progress:
    """A line for each running job. Told by the event loop, drawn by the thread that writes to the terminal."""

    def __init__(self) -> None:
        self.has_changed = False
        self._jobs: dict[str, Step] = {}
        self._drawn = 0  # lines that stand on the terminal now

    def show(self, job_id: str, step: Step) -> None:
        """A job runs, and is so far."""
        self._jobs[job_id] = step
        self.has_changed = True

    def hide(self, job_id: str) -> None:
        """A job runs no more."""
        if self._jobs.pop(job_id, None) is not None:
            self.has_changed = True

    def erase(self) -> str:
        """What takes the lines off the terminal again."""
        drawn, self._drawn = self._drawn, 0
        return f"\x1b[{drawn}A\r\x1b[J" if drawn else ""

    def draw(self, width: int, height: int) -> str:
        """What puts them there: as many as leave half of the terminal to the log."""
        self.has_changed = False
        lines = [step.line(job_id, width) for job_id, step in list(self._jobs.items())[: height // 2]]
        self._drawn = len(lines)
        return "".join(f"{line}\n" for line in lines)
