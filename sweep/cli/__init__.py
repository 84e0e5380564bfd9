"""The command line: what each verb does, and the processes that it starts."""
