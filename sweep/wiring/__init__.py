"""Puts a sweep together from its configuration and the real world: the only folder that knows all the others."""
