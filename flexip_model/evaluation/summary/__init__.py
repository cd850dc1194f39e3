"""What a run's scores come to: tables with intervals, ranks, tests between methods, and how a knob turns."""
