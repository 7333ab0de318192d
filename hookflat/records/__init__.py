"""What a run leaves behind: its folder, and results with a type."""
