"""What of a simulated world has changed, for those who observe it."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class Watch:
    """The trials and workers that have changed since one observer last cleared it."""

    trials: set[int] = field(default_factory=set)
    workers: set[str] = field(default_factory=set)


@dataclass(slots=True)
class Changes:
    """The changes that a controller may observe.

    Args:
        count: of all changes so far.
    """

    count: int = 0
    _watches: list[Watch] = field(default_factory=list)

    def watch(self) -> Watch:
        """A record of what changes from now on, for one observer."""
        self._watches.append(Watch())
        return self._watches[-1]

    def trial(self, number: int) -> None:
        """Note that an attempt of a trial has changed."""
        self.count += 1
        for watch in self._watches:
            watch.trials.add(number)

    def worker(self, name: str) -> None:
        """Note that a worker or its job has changed."""
        self.count += 1
        for watch in self._watches:
            watch.workers.add(name)
