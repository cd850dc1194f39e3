"""What `accelerate launch -m flexip_model.train CONFIG` runs."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
