"""From rows to figures with intervals, comparisons of adapters, curves, and the tables of the card."""
