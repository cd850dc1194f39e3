"""The method of the paper (§3) and nothing else: sites, resampler, gate, gated attention, adapters."""
