"""What is tried next and what is stopped: the Optuna study with its sampler and pruner."""
