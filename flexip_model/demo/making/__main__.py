"""`python -m flexip_model.demo.making BRING WORK`: one leg of training the small model."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from .legs import STAGES, Legs, plan_of


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("bring", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--vae", type=Path, default=Path(__file__).parents[3] / "models" / "demo" / "vae")
    parser.add_argument("--seconds", type=float, default=540)
    parser.add_argument("--plan", default="{}")
    parser.add_argument("--processes", type=int)
    parser.add_argument("--until", choices=STAGES, default=STAGES[-1])
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    legs = Legs(
        options.bring,
        options.vae,
        options.work,
        plan_of(options.plan),
        seconds=options.seconds,
        processes=options.processes,
    )
    try:
        done = legs.go(options.until)
    finally:
        legs.close()
    logging.getLogger(__name__).info("all is trained" if done else "the leg is over; run again to go on")


if __name__ == "__main__":
    main()
