"""What open trials have spent, as their reports say.

Invariant: totals are those of the trials that have not been taken out; a report that is heard again changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Usage:
    """Label tokens and seconds of training.

    Args:
        tokens, seconds: of all trials that are kept here.
    """

    tokens: int = 0
    seconds: float = 0.0
    _tokens: dict[int, int] = field(default_factory=dict)
    _seconds: dict[int, dict[int, float]] = field(default_factory=dict)

    def add_tokens(self, trial: int, tokens: int) -> None:
        """A trial has come to so many label tokens, over all its attempts."""
        more = tokens - self._tokens.get(trial, 0)
        if more > 0:
            self._tokens[trial] = tokens
            self.tokens += more

    def add_seconds(self, trial: int, attempt: int, seconds: float) -> None:
        """One attempt has trained for so long."""
        known = self._seconds.setdefault(trial, {})
        more = seconds - known.get(attempt, 0.0)
        if more > 0:
            known[attempt] = seconds
            self.seconds += more

    def tokens_of(self, trial: int) -> int:
        return self._tokens.get(trial, 0)

    def take(self, trial: int) -> tuple[int, float]:
        """What a trial has spent, in tokens and seconds; it is kept here no longer."""
        tokens, seconds = self._tokens.pop(trial, 0), sum(self._seconds.pop(trial, {}).values())
        self.tokens -= tokens
        self.seconds -= seconds
        return tokens, seconds
