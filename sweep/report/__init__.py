"""What a person reads of a sweep: terminal, HTML, exported YAML, plan and replay."""
