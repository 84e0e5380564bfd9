"""When the controller first saw a value: the only facts that no port can report again."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class FirstSeen:
    """Remembers for each key its last value and when that value was first seen, on the controller's clock.

    A new controller starts with an empty memory, so every grace period that depends on it starts again. The same holds
    after `restart`.

    Args:
        now: the time of the present observation, in seconds.
    """

    now: float = 0.0
    _values: dict[tuple[str, object], tuple[object, float]] = field(default_factory=dict)

    def since(self, kind: str, key: object, value: object) -> float:
        """When this key was first seen with the value that it has now, in seconds."""
        entry = self._values.get((kind, key))
        if entry is None or entry[0] != value:
            entry = self._values[kind, key] = (value, self.now)
        return entry[1]

    def restart(self) -> None:
        """Forget everything: what was not observed for long says nothing of the time in between."""
        self._values.clear()

    def forget(self, kind: str, key: object) -> None:
        """Drop the value of a key that is not asked for again."""
        self._values.pop((kind, key), None)
