"""hookflat: adversarial training as composable plugins, and the flatness of the robust loss for any network.

Every public name is in `__init__.pyi`, once. Each is imported when it is first used: `import hookflat` and the command
line stay fast.
"""

import lazy_loader

from hookflat.threads import wait_passively

wait_passively()  # before torch is imported

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
