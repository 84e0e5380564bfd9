"""The pieces of `tests/bench/search.py`: tables of curves, a discrete-event replay, and the arms that search on it."""
