"""The sections of a configuration as typed values, the search space, and the torchtune YAML of the user."""
