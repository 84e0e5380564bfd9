"""Rooms in object stores, for the controller and for processes without the lease."""
