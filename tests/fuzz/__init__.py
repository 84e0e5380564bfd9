"""Programs that try random inputs for as long as a person lets them: `python -m tests.fuzz.NAME --help`.

Invariant: an input is drawn from a seed alone, and a failure prints the command that repeats it.
"""
