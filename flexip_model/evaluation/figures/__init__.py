"""The paper's figures of any adapter: `python -m flexip_model attention-maps` (Fig. 7)."""
