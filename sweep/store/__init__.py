"""Rooms in an object store: the controller's side."""
