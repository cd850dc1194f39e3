"""What a training run is told, in one YAML file; the defaults are the paper's (section in brackets)."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ...common.errors import FlexIPError
from ...method.config import FlexIPConfig


@dataclass(frozen=True)
class Stage:
    """Optimizer steps on one part of the data.

    Attributes:
        steps: how many [App. B.1: 100,000, then 40,000].
        quality: `any`, or `high` for the groups packed with `--quality high`.
    """

    steps: int
    quality: str = "any"


@dataclass(frozen=True)
class References:
    """How references differ from targets.

    Attributes:
        white: share of references whose background is white, where a mask is known [3.3; the share is our choice].
        flip_image, flip_variant: share of mirrored references per kind of data (our choice: an image sample teaches to
            keep what is seen, a variant sample not to copy it).
        crop: `center`, `pad` or `subject` (see `preprocess.prepare`); without a mask `subject` falls back to `pad`.
    """

    white: float = 0.5
    flip_image: float = 0.0
    flip_variant: float = 0.5
    crop: str = "pad"


@dataclass(frozen=True)
class ConditioningDropout:
    """Shares of samples without image, without text, without both: three exclusive cases (App. B.1)."""

    image: float = 0.05
    text: float = 0.05
    both: float = 0.05

    def drop(self, drawn: ArrayLike) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Which samples lose their image, and which their text.

        Args:
            drawn: evenly from [0, 1), of any shape, one for each sample.

        Returns:
            Two masks of that shape.
        """
        case = np.digitize(np.asarray(drawn, np.float64), np.cumsum([self.image, self.text, self.both]))
        return (case == 0) | (case == 2), (case == 1) | (case == 2)


@dataclass(frozen=True)
class TrainConfig:
    """One training run.

    Attributes:
        base: diffusers folder of an SD1.5 model, or the name of one on a model hub [4.1].
        clip, dino: encoder files [3.2].
        data: folders made by `data pack`.
        output: folder of the run: checkpoints, logs, previews, adapter files.
        size: side of the target pictures in pixels [App. B.1].
        adapter: fields of `FlexIPConfig` that differ from its defaults.
        start: an adapter file, or an IP-Adapter-Plus file, to begin from.
        stages: one after the other [App. B.1].
        batch: samples per device and micro-step, half of them of either kind [App. B.1].
        accumulation: micro-steps per optimizer step.
        image_share: of the image kind in a batch; 1 or 0 for data of one kind [3.4: half and half].
        lr, weight_decay, betas: AdamW [App. B.1; betas are AdamW's own].
        warmup: steps over which the learning rate rises (our choice).
        schedule: `constant` [App. B.1], or `cosine` to a fiftieth at the end of the last stage.
        decay_from: share of the steps after which the cosine begins (our choice).
        clip_norm: largest norm of the gradient (our choice).
        ema: decay of the averaged weights, which previews and adapter files take (our choice).
        gamma_spread: how far each sample's γ is spread from α or 1 - β over [0, 1], from 0 to 1 (our choice, off by
            default; see `gate.spread_gamma`).
        min_snr: γ of min-SNR weighting (Hang et al., 2023), or null for the paper's plain loss [Eq. 6].
        dropout, references: see there.
        precision: of the frozen networks and the arithmetic: `bf16` or `fp32`; what is trained is always fp32.
        gradient_checkpointing: less memory for about a third more time.
        compile: compile the UNet's repeated blocks.
        workers: loading processes per device.
        use_cache: read latents and [CLS] from `data cache`, where it fits.
        seed: of everything that is drawn.
        save_every, keep: steps between checkpoints; how many of the newest stay.
        log_every: steps between entries of progress and TensorBoard.
        preview_every: steps between γ sweeps of validation subjects; 0 for none.
        preview_steps, guidance: of those.
        bad_share: share of unreadable samples at which the run stops.
        title, license: of the adapter file.
    """

    base: str
    clip: str
    dino: str
    data: tuple[str, ...]
    output: str
    size: int = 512
    adapter: dict[str, Any] = field(default_factory=dict)
    start: str | None = None
    stages: tuple[Stage, ...] = (Stage(100_000), Stage(40_000, "high"))
    batch: int = 16
    accumulation: int = 1
    image_share: float = 0.5
    lr: float = 1e-4
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    warmup: int = 1000
    schedule: str = "constant"
    decay_from: float = 0.0
    clip_norm: float = 1.0
    ema: float = 0.9999
    gamma_spread: float = 0.0
    min_snr: float | None = None
    dropout: ConditioningDropout = ConditioningDropout()
    references: References = References()
    precision: str = "bf16"
    gradient_checkpointing: bool = False
    compile: bool = False
    workers: int = 4
    use_cache: bool = True
    seed: int = 0
    save_every: int = 1000
    keep: int = 3
    log_every: int = 50
    preview_every: int = 2000
    preview_steps: int = 25
    guidance: float = 5.0
    bad_share: float = 0.01
    title: str = "FlexIP adapter"
    license: str = ""

    def __post_init__(self) -> None:
        if not self.data or not self.stages:
            raise FlexIPError("the config names no data folder or no stage; give at least one of each")
        whole = {
            "size": self.size,
            "batch": self.batch,
            "accumulation": self.accumulation,
            "keep": self.keep,
            "save_every": self.save_every,
            "log_every": self.log_every,
            "preview_steps": self.preview_steps,
            **{f"stages[{i}].steps": s.steps for i, s in enumerate(self.stages)},
        }
        for name, value in whole.items():
            if value < 1:
                raise FlexIPError(f"{name} is {value}; expected at least 1")
        shares = {
            "image_share": self.image_share,
            "ema": self.ema,
            "gamma_spread": self.gamma_spread,
            "bad_share": self.bad_share,
            **{f"references.{k}": v for k, v in asdict(self.references).items() if k != "crop"},
            **{f"dropout.{k}": v for k, v in asdict(self.dropout).items()},
            "the sum of the dropouts": sum(asdict(self.dropout).values()),
        }
        for name, value in shares.items():
            if not 0 <= value <= 1:
                raise FlexIPError(f"{name} is {value}; expected a share from 0 to 1")
        if self.size % 8:
            raise FlexIPError(f"size is {self.size}; expected a multiple of 8 (the VAE's factor)")
        images = self.batch * self.image_share
        if abs(images - round(images)) > 1e-9:
            raise FlexIPError(
                f"a batch of {self.batch} cannot hold a share of {self.image_share} image samples; "
                "give a batch that can be split so"
            )
        if self.lr <= 0 or self.clip_norm <= 0 or self.warmup < 0 or self.workers < 0 or self.preview_every < 0:
            raise FlexIPError("lr and clip_norm must be above 0; warmup, workers and preview_every at least 0")
        if not 0 <= self.decay_from < 1:
            raise FlexIPError(f"decay_from is {self.decay_from}; expected a share from 0 to below 1")
        choices = {"precision": ("bf16", "fp32"), "schedule": ("constant", "cosine")}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise FlexIPError(f"{name} is {getattr(self, name)!r}; expected one of {', '.join(allowed)}")
        for stage in self.stages:
            if stage.quality not in ("any", "high"):
                raise FlexIPError(f"a stage's quality is {stage.quality!r}; expected any or high")
        self.adapter_config()

    @property
    def steps(self) -> int:
        """Optimizer steps of all stages."""
        return sum(stage.steps for stage in self.stages)

    def adapter_config(self, **measured: Any) -> FlexIPConfig:
        """The adapter's config: defaults, then widths measured on base and encoders, then `adapter`.

        Raises:
            FlexIPError: an unknown field or a value out of its range.
        """
        values = {**measured, **self.adapter}
        # A dial is measured on what was trained; it is nothing to train with.
        unknown = set(values) - {f.name for f in fields(FlexIPConfig)} | ({"dial"} & set(values))
        if unknown:
            raise FlexIPError(f"the config's adapter has no field {', '.join(sorted(unknown))}")
        return FlexIPConfig(**values)


def to_dict(config: TrainConfig) -> dict[str, Any]:
    """The whole config as plain values, for YAML or JSON."""
    return asdict(config)
