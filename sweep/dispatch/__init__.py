"""Queues: each module makes one kind of place reachable, and none imports another."""
