"""Evaluates the adapter of each new best trial, with a second controller that runs during the search."""
