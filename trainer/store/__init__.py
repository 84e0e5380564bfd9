"""Rooms in an object store: the worker's side."""
