"""The protocols of a sweep's controller, and the loop that observes, decides and acts through them."""
