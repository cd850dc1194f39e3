"""The method of the paper and nothing else: sites, resampler, gate, gated attention, adapter (§3)."""
