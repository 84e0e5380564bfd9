"""Label tokens and training time of the open trials, added up from their reports.

Invariant: the totals are those of the trials that have not been removed; the same report twice changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Usage:
    """What the open trials have used so far.

    Args:
        tokens: label tokens of all trials in here.
        seconds: of training of all trials in here, over all their attempts.
    """

    tokens: int = 0
    seconds: float = 0.0
    _tokens: dict[int, int] = field(default_factory=dict)
    _seconds: dict[int, dict[int, float]] = field(default_factory=dict)

    def set_tokens(self, trial: int, tokens: int) -> None:
        """Record how many label tokens a trial has trained over all its attempts; a smaller number is ignored."""
        more = tokens - self._tokens.get(trial, 0)
        if more > 0:
            self._tokens[trial] = tokens
            self.tokens += more

    def set_seconds(self, trial: int, attempt: int, seconds: float) -> None:
        """Record how long one attempt has trained; a smaller number is ignored."""
        by_attempt = self._seconds.setdefault(trial, {})
        more = seconds - by_attempt.get(attempt, 0.0)
        if more > 0:
            by_attempt[attempt] = seconds
            self.seconds += more

    def tokens_of(self, trial: int) -> int:
        """Label tokens that one trial has trained."""
        return self._tokens.get(trial, 0)

    def remove(self, trial: int) -> tuple[int, float]:
        """Remove a trial from the totals; returns its label tokens and its seconds of training."""
        tokens, seconds = self._tokens.pop(trial, 0), sum(self._seconds.pop(trial, {}).values())
        self.tokens -= tokens
        self.seconds -= seconds
        return tokens, seconds
