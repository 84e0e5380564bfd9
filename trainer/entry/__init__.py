"""What a process of the trainer can be started as."""
