"""Workers that exist in a simulation only."""
