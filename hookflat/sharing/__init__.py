"""A trained network for others: its card, a file that loads without hookflat, and the way to the Hugging Face Hub."""
