"""What a trial measures at its milestones beside the losses, which it always reports."""
