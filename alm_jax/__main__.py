"""`python -m alm_jax` is the `alm` command."""

import sys

from alm_jax.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
