"""Adapters to other search libraries. Each runs as a script in that library's own environment."""
