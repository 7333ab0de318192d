"""Adversarial logit pairing and the local Lipschitz constant, as hookflat plugins."""
