"""What judges the adapter of a new best trial, and the controller that runs such evaluations beside the search."""
