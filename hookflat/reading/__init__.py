"""Images and weights from files."""
