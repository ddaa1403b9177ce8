"""What was run, as tidy frames: runs, curves and predictions."""
