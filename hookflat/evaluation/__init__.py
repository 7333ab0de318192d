"""Any checkpoint to results."""
