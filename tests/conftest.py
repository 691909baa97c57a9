"""Settings of every test: the CPU, unless the user chose another platform.

Compiled programs are not kept between runs: reading them back from JAX's persistent cache has
crashed on the CPU.
"""

import os

# Before JAX is imported anywhere.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
