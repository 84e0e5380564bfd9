"""What `sweep replay` prints, for people and for programs."""

from __future__ import annotations

from sweep.report.replay import Replay

REPLAY = Replay(
    trials=12,
    sweep_tokens=20_000,
    tokens=15_000,
    sweep_best=1.0,
    best=None,
    winner=3,
    winner_ending="pruned",
    winner_reason="worse than 5 of 6",
    cut=0,
)


def test_the_keys_of_the_json_are_those_of_version_0_1() -> None:
    assert REPLAY.to_json() == {
        "trials": 12,
        "tokens_then": 20_000,
        "tokens": 15_000,
        "best_then": 1.0,
        "best": None,
        "winner": 3,
        "winner_fate": "pruned",
        "reason": "worse than 5 of 6",
        "cut": 0,
    }


def test_the_text_compares_tokens_the_winner_and_the_best_value() -> None:
    assert REPLAY.text().splitlines() == [
        "tokens: 15,000 for 12 trials, 75% of the sweep's 20,000",
        "the sweep's best trial: trial 3 would have ended as pruned (worse than 5 of 6)",
        "best value: –; in the sweep 1.0000",
    ]
