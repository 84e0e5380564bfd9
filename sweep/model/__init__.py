"""The frozen values of a sweep, each with its derived properties: states, facts, limits, effects, summaries."""
