"""The loop that observes, decides and acts, and the protocols through which it does so."""
