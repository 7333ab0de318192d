"""A page on this machine alone that shows a run or a study while it works."""
