"""Trains many trials on one frozen base in one forward and backward pass."""
