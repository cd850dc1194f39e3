"""The paper's figures of any adapter: `attention-maps` (Fig. 7), `figure strip`, `style` and `dial` (Figs. 5, 6, 1)."""
