"""The loop, and what it needs to run: checkpoints, measuring, console, trackers."""
