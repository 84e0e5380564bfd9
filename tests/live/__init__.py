"""Tests against a real W&B server, run by hand."""
