"""`python -m flexip_model`: see `cli`."""

import sys

from .cli import main

sys.exit(main())
