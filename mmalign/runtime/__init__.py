"""What a run needs around the maths: log, checkpoints, processes."""
