"""Plain functions and values on any `torch.nn.Module`: attacks, losses, measures. No hook, no recipe, no file."""
