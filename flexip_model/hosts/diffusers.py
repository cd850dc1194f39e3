"""The diffusers host: attention processors that add the gated branches, and their removal.

    host = inject(unet, adapter)
    host.condition = Condition(preservation=p, personalization=s, gamma=gamma_tensor(0.6))
    noise = unet(latents, t, encoder_hidden_states=text).sample
    host.eject()
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor
from torch.nn import functional as F

from ..adapter import FlexIPAdapter, SiteBranches
from ..attention import KeyValue, gated_attention
from ..errors import FlexIPError
from ..gate import gate_weights, turn
from ..sites import SD15_SITES

if TYPE_CHECKING:
    from diffusers.models.attention_processor import Attention

    from diffusers import UNet2DConditionModel


@dataclass(eq=False)
class Condition:
    """What the gated attention reads; one object serves all the steps of a run.

    Keys and values are projected at a site's first call and kept, so a new object is needed when tokens change
    (in training: each step).

    Attributes:
        preservation: P, (B or 1, N_P, W); None leaves the branch out.
        personalization: S, (B or 1, N_S, W); None leaves the branch out.
        gamma: (B or 1, 1, 1), a user's (see `gate.gamma_tensor`); the adapter's dial makes it the gate's.
        strength: factor on both branches; 0 gives the unpatched UNet exactly.
    """

    preservation: Tensor | None
    personalization: Tensor | None
    gamma: Tensor
    strength: float = 1.0
    _projected: dict[str, tuple[KeyValue | None, KeyValue | None]] = field(default_factory=dict, repr=False)
    _turned: tuple[Tensor, Tensor] | None = field(default=None, repr=False)

    def turned(self, dial: tuple[float, ...]) -> Tensor:
        """The gate's γ, (B or 1, 1, 1): made once for all sites and steps of a run."""
        if self._turned is None or self._turned[0] is not self.gamma:
            self._turned = (self.gamma, turn(self.gamma, dial))
        return self._turned[1]

    def project(self, name: str, branches: SiteBranches) -> tuple[KeyValue | None, KeyValue | None]:
        """Keys and values of P and S at the site `name`."""
        if name not in self._projected:
            p, s = self.preservation, self.personalization
            self._projected[name] = (
                None if p is None else branches.preservation(p),
                None if s is None or branches.personalization is None else branches.personalization(s),
            )
        return self._projected[name]


class GatedAttnProcessor:
    """Cross-attention as in diffusers' `AttnProcessor2_0`, with the gated branches before `to_out`."""

    def __init__(self, host: FlexIPHost, name: str, branches: SiteBranches) -> None:
        self.host, self.name, self.branches = host, name, branches

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """hidden_states (B, L, C), encoder_hidden_states (B, T, text_width) → (B, L, C)."""
        batch = hidden_states.shape[0]
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        mask = None
        if attention_mask is not None:
            mask = attn.prepare_attention_mask(attention_mask, context.shape[1], batch)
            mask = mask.view(batch, attn.heads, -1, mask.shape[-1])

        def split_and_attend(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
            q, k, v = (
                t.expand(batch, -1, -1).unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v)
            )
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
            return out.transpose(1, 2).flatten(2)

        q, k, v = attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context)
        out = split_and_attend(q, k, v, attn.heads, mask)
        condition = self.host.condition
        if condition is not None and condition.strength != 0:
            p, s = condition.project(self.name, self.branches)
            weights = gate_weights(condition.turned(self.host.adapter.config.dial), condition.strength)
            out = gated_attention(q, out, p, s, *weights, attn.heads, split_and_attend)
        out = attn.to_out[1](attn.to_out[0](out))
        return out / attn.rescale_output_factor


class FlexIPHost:
    """A UNet with the adapter injected; `condition` is what it generates from, None means unpatched."""

    def __init__(self, unet: UNet2DConditionModel, adapter: FlexIPAdapter) -> None:
        self.unet, self.adapter = unet, adapter
        self.condition: Condition | None = None
        self._original = dict(unet.attn_processors)
        processors = dict(self._original)
        for site in SD15_SITES:
            key = f"{site.diffusers}.processor"
            processors[key] = GatedAttnProcessor(self, site.name, adapter.site(site))
        unet.set_attn_processor(processors)

    def eject(self) -> None:
        """Put the UNet's own processors back: the same objects as before `inject`."""
        self.unet.set_attn_processor(dict(self._original))
        self.condition = None


def inject(unet: UNet2DConditionModel, adapter: FlexIPAdapter) -> FlexIPHost:
    """Put the adapter's branches into an SD1.5-shaped UNet; nothing of the UNet's weights changes.

    Raises:
        FlexIPError: the UNet lacks SD1.5's cross-attention sites, or their widths differ from the adapter's.
    """
    present = unet.attn_processors
    cross = {key for key in present if key.endswith("attn2.processor")}
    wanted = {f"{site.diffusers}.processor" for site in SD15_SITES}
    if cross != wanted:
        raise FlexIPError(
            f"this UNet has {len(cross)} cross-attention layers where SD1.5 has {len(wanted)}; "
            "FlexIP needs a UNet of SD1.5's structure"
        )
    for site in SD15_SITES:
        layer = unet.get_submodule(site.diffusers)
        found = layer.to_k.weight.shape[0]
        expected = adapter.config.channels[site.level]
        if found != expected:
            raise FlexIPError(
                f"at {site.name} the UNet is {found} wide and the adapter {expected}; "
                "use the adapter with the base model that it was trained for"
            )
    return FlexIPHost(unet, adapter)
