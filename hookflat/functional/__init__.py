"""Plain functions and values on any `torch.nn.Module`: attacks, losses, measures. No hook and no recipe; the only files
are the finished parts of a measurement, where the caller names a folder (`Work`).
"""
