"""A loopback server that speaks the W&B client's protocol: what it serves is in README.md."""
