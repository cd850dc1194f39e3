"""The diffusers host: attention processors that add the gated branches, and their removal.

host = inject(unet, adapter)
host.condition = Condition(preservation=p, personalization=s, gamma=gamma_tensor(0.6))
noise = unet(latents, t, encoder_hidden_states=text).sample
with host.watch() as record:  # what attends to what, see `method.inside`
    unet(latents, t, encoder_hidden_states=text)
host.eject()

Letters: B batch, L queries of a layer, T text tokens, N keys, C the layer's width, H heads, E head width.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from ..common.errors import FlexIPError
from ..method.adapters import Adapter, SiteBranches
from ..method.attention import Attend, KeyValue, gated_attention
from ..method.inside.maps import PERSONALIZATION, PRESERVATION, TEXT, Attended
from ..method.inside.record import AttentionRecord
from ..method.sites import SD15_SITES, Site
from .condition import Condition, KeysValues

__all__ = ["Condition", "FlexIPHost", "GatedAttnProcessor", "inject"]

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel
    from diffusers.models.attention_processor import Attention


class GatedAttnProcessor:
    """Cross-attention as in diffusers' `AttnProcessor2_0`, with the gated branches before `to_out`.

    Attributes:
        before: what sat at the site; it computes the attention while there is no condition.
        chain: this one, and before it those of other hosts that were injected earlier; what they add is summed up.
        held: the keys and values of the host's condition here.
    """

    def __init__(self, host: FlexIPHost, site: Site, branches: SiteBranches, before: Any) -> None:
        self.host, self.site, self.branches, self.before = host, site, branches, before
        gated = isinstance(before, GatedAttnProcessor)
        self.chain: tuple[GatedAttnProcessor, ...] = (*before.chain, self) if gated else (self,)
        self.base = before.base if gated else before
        self.held: KeysValues | None = None

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """hidden_states (B, L, C), encoder_hidden_states (B, T, text_width) → (B, L, C)."""
        adding = [own for own in self.chain if own.host.adds]
        if not adding:
            plain: Tensor = self.base(attn, hidden_states, encoder_hidden_states, attention_mask)
            return plain
        batch = hidden_states.shape[0]
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        mask = None
        if attention_mask is not None:
            mask = attn.prepare_attention_mask(attention_mask, context.shape[1], batch)
            mask = mask.view(batch, attn.heads, -1, mask.shape[-1])

        def split_and_attend(q: Tensor, k: Tensor, v: Tensor, heads: int, *, mask: Tensor | None = None) -> Tensor:
            q, k, v = (rearrange(t.expand(batch, -1, -1), "b n (h e) -> b h n e", h=heads) for t in (q, k, v))
            return rearrange(F.scaled_dot_product_attention(q, k, v, attn_mask=mask), "b h n e -> b n (h e)")

        q, k, v = attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context)
        out = split_and_attend(q, k, v, attn.heads, mask=mask)
        for own in adding:
            out = own.add(q, out, attn.heads, split_and_attend)
            if own.host.watching is not None:
                own.look(own.host.watching, q, Attended(k, v, mask=mask), attn.heads)
        projected: Tensor = attn.to_out[1](attn.to_out[0](out)) / attn.rescale_output_factor
        return projected

    def add(self, q: Tensor, out: Tensor, heads: int, attend: Attend) -> Tensor:
        """Add this host's branches to an attention's output (B, L, C), of queries (B, L, C)."""
        p, s, weights = self._branches(q)
        return gated_attention(q, out, p, s, weights=weights, heads=heads, attend=attend)

    def look(self, watching: Watching, q: Tensor, text: Attended, heads: int) -> None:
        """Note what the layer's queries (B, L, C) attend to, in the rows that are watched."""
        p, s, weights = self._branches(q)
        pairs = zip((PRESERVATION, PERSONALIZATION), (p, s), weights, strict=True)
        branches = {name: Attended(*pair, weight) for name, pair, weight in pairs if pair is not None}
        rows = watching.rows
        watching.record.add(
            self.site,
            q[rows],
            {name: of.of_rows(rows) for name, of in {**branches, TEXT: text}.items()},
            heads=heads,
            grid=self.site.grid(*watching.size),
            pictures=range(len(q[rows])),
        )

    def _branches(self, q: Tensor) -> tuple[KeyValue | None, KeyValue | None, tuple[Tensor, Tensor]]:
        """Keys and values of P and S as the queries' dtype and device, and the gate's weights."""
        condition = self.host.condition
        assert condition is not None
        if self.held is None:  # the UNet's forward was called without its hooks
            self.held = condition.project(self.branches, q)
        # A no-op, unless the UNet runs under autocast or its weights come to another device in the middle of a call.
        p, s = (pair and (pair[0].to(q), pair[1].to(q)) for pair in self.held)
        return p, s, condition.weights(self.host.adapter.config.dial, q.device)


@dataclass(eq=False)
class Watching:
    """What is looked at while the UNet runs: the rows of its batch, and the latent's size in the call that goes on."""

    record: AttentionRecord
    rows: slice
    size: tuple[int, int] = (0, 0)


class FlexIPHost:
    """A UNet with the adapter injected; `condition` is what it generates from, None means unpatched.

    With a condition, each call of the UNet looks first whether the processors still sit where `inject` put them, and
    whether the condition fits the batch.

    The adapter may be of another floating dtype than the UNet, or on another device; keys and values are computed where
    the adapter is.
    """

    def __init__(self, unet: UNet2DConditionModel, adapter: Adapter) -> None:
        self.unet, self.adapter = unet, adapter
        self._condition: Condition | None = None
        self.watching: Watching | None = None
        self.ejected = False
        self._own: list[tuple[Attention, GatedAttnProcessor]] = []
        for site in SD15_SITES:
            attn: Any = unet.get_submodule(site.diffusers)
            own = GatedAttnProcessor(self, site, adapter.site(site), _not_ejected(attn.processor))
            attn.set_processor(own)
            self._own.append((attn, own))
        self._hook = unet.register_forward_pre_hook(self._before_forward, with_kwargs=True)

    @property
    def condition(self) -> Condition | None:
        """What the UNet generates from.

        Raises:
            FlexIPError: (when the UNet is called) other processors sit at sites of this host, or the condition is not
                one for this batch and adapter; (when it is set) this host was ejected.
        """
        return self._condition

    @condition.setter
    def condition(self, condition: Condition | None) -> None:
        if condition is not None and self.ejected:
            raise FlexIPError("this host was ejected, so a condition would have no effect; inject the adapter again")
        self._condition = condition
        for _, own in self._own:
            own.held = None

    @property
    def adds(self) -> bool:
        """Whether the branches have anything to add now."""
        return self._condition is not None and self._condition.strength != 0

    @contextmanager
    def watch(self, rows: slice = slice(None)) -> Iterator[AttentionRecord]:
        """Within, note what the UNet's cross-attention attends to; each call of the UNet is a step.

        Pictures do not change by it, and outside nothing is computed for it.

        Args:
            rows: those of the UNet's batch that are looked at, each a picture: `slice(0, B)` for the first half where
                guidance doubles the batch.
        """
        before, self.watching = self.watching, Watching(AttentionRecord(self.adapter), rows)
        try:
            yield self.watching.record
        finally:
            self.watching = before

    def eject(self) -> None:
        """Take this host out: wherever its processor still sits, the very object that sat there before comes back.

        What others put in the place of its processors meanwhile stays, as do processors at other layers.
        """
        self.condition, self.ejected = None, True
        self._hook.remove()
        for attn, own in self._own:
            if attn.processor is own:
                attn.set_processor(_not_ejected(own.before))

    def _before_forward(self, unet: UNet2DConditionModel, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        condition = self._condition
        if condition is None:
            return
        lost = [type(attn.processor).__name__ for attn, own in self._own if not _reaches(attn.processor, own)]
        if lost:
            raise FlexIPError(
                f"FlexIP's processors are gone from {len(lost)} of its {len(self._own)} cross-attention layers, where "
                f"{_count(lost)} sits now, as set_attention_slice, fuse_qkv_projections, load_ip_adapter and other "
                "calls that set processors do; make such a call before inject, or call eject and inject again"
            )
        sample = args[0] if args else kwargs["sample"]
        condition.check(sample.shape[0], self.adapter)
        if self.watching is not None:
            self.watching.record.begin_step()
            self.watching.size = tuple(sample.shape[-2:])
        if not self.adds:
            return
        # All before the UNet runs: gradient checkpointing runs its blocks twice and must find the same tensors each
        # time, and one compiled block serves all sites where none of them has anything to remember.
        condition.weights(self.adapter.config.dial, sample.device)
        for _, own in self._own:
            own.held = condition.project(own.branches, sample)


def _not_ejected(processor: Any) -> Any:
    """The processor, or what sat there before where it is one of a host that was ejected since."""
    while isinstance(processor, GatedAttnProcessor) and processor.host.ejected:
        processor = processor.before
    return processor


def _reaches(processor: Any, own: GatedAttnProcessor) -> bool:
    """Whether a call of `processor` also runs `own`: it is the same, or one of a host injected later."""
    return processor is own or (
        isinstance(processor, GatedAttnProcessor) and any(one is own for one in processor.chain)
    )


def _count(names: list[str]) -> str:
    """'A', or 'A (14) and B (2)'."""
    found = Counter(names)
    return next(iter(found)) if len(found) == 1 else " and ".join(f"{name} ({n})" for name, n in found.items())


def inject(unet: UNet2DConditionModel, adapter: Adapter) -> FlexIPHost:
    """Put the adapter's branches into an SD1.5-shaped UNet; nothing of the UNet's weights changes.

    Several adapters may be injected into one UNet: what those with a condition add is summed up, and they may be
    ejected in any order. Where the UNet's attention is sliced, fused or xformers', the layers with branches compute it
    with torch's `scaled_dot_product_attention` while there is a condition.

    Raises:
        FlexIPError: the UNet lacks SD1.5's cross-attention sites, or their widths differ from the adapter's, or
            processors sit there that do more than plain attention (an IP-Adapter's for example).
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
    foreign = [type(present[key]).__name__ for key in sorted(cross) if not _is_plain(present[key])]
    if foreign:
        raise FlexIPError(
            f"{_count(foreign)} sits at {len(foreign)} of the UNet's cross-attention layers, and what it does would be "
            "lost; expected plain attention: take it out before inject, by its own call (unload_ip_adapter) or by "
            "set_attn_processor"
        )
    return FlexIPHost(unet, adapter)


def _is_plain(processor: Any) -> bool:
    """Whether a processor computes attention and nothing else, so that ours may take its place; or is one of ours."""
    from diffusers.models import attention_processor as known

    return type(processor) in (
        GatedAttnProcessor,
        known.AttnProcessor,
        known.AttnProcessor2_0,
        known.SlicedAttnProcessor,
        known.FusedAttnProcessor2_0,
        known.XFormersAttnProcessor,
        known.AttnProcessorNPU,
        known.XLAFlashAttnProcessor2_0,
    )
