"""The command line: the verbs, and the controllers that they run in the foreground, in the background or as jobs."""
