"""The options of a training, which one YAML file holds; the defaults are the paper's where it has any."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Annotated, Any, Literal, get_type_hints

from pydantic import Field, GetCoreSchemaHandler, GetPydanticSchema
from pydantic_core import CoreSchema, core_schema

from ...common.errors import FlexIPError, Mistakes
from ...method.config import FlexIPConfig
from .sections import (
    CLOSED,
    Buckets,
    ConditioningDropout,
    Count,
    Decay,
    Dial,
    Flag,
    Number,
    OneOrSeveral,
    Place,
    Positive,
    References,
    Sampling,
    Scale,
    Seed,
    Share,
    TrainStage,
    ValidationLoss,
    Whole,
)


def _adapter_schema(_: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
    """Some of `FlexIPConfig`'s fields; that a name is none of them is for `adapter_config` to say."""
    strict: dict[Any, Any] = {int: Annotated[int, Field(strict=True)], float: Number, bool: Flag}
    hints = get_type_hints(FlexIPConfig)
    known = {
        name: core_schema.typed_dict_field(handler.generate_schema(strict.get(hint, hint)), required=False)
        for name, hint in hints.items()
    }
    return core_schema.typed_dict_schema(known, extra_behavior="allow")


@dataclass(frozen=True)
class TrainConfig:
    """One training run.

    Attributes:
        base: diffusers folder of an SD1.5 model, a `.safetensors` checkpoint of one, or the name of one on a model hub
            (App. B.1).
        base_configs: for a checkpoint, a diffusers folder whose configs and tokenizer it takes; weights need not be in
            it.
        vae: a diffusers folder or a `.safetensors` file, in place of the base's own VAE (our choice: the paper has
            none).
        clip, dino: encoder files (App. B.1).
        data: folders made by `data pack`.
        output: the folder for checkpoints, logs, previews and adapter files.
        size: side of the target pictures in pixels, a multiple of 8, the VAE's factor (App. B.1).
        buckets: sizes for targets that are not square; null for squares alone (App. B.1). Previews and the validation
            loss are of squares.
        adapter: fields of `FlexIPConfig` that differ from its defaults.
        start: an adapter file, or an IP-Adapter-Plus file, to begin from.
        stages: are trained one after the other (App. B.1).
        batch: samples per device and micro-step (App. B.1).
        accumulation: micro-steps per optimizer step.
        image_share: share of image samples in a batch (§4.1: 1:1 over the data; in each batch: our choice); 1 or 0 for
            data of one side.
        optimizer: `adamw`, or `adamw8bit`, bitsandbytes' with moments of eight bits (our choice: the paper names none).
        lr, weight_decay: App. B.1's.
        betas: of AdamW (our choice).
        warmup: steps over which the learning rate rises (our choice).
        schedule: `constant`, or `cosine` to a fiftieth at the end of the last stage (our choice).
        decay_from: share of the steps after which the cosine begins (our choice).
        clip_norm: largest norm of the gradient (our choice).
        ema: decay of the averaged weights, which previews and adapter files take (our choice).
        gamma_spread: how far each sample's γ is spread from α or 1 - β over [0, 1], from 0 to 1 (our choice, off by
            default; see `gate.spread_gamma`).
        min_snr: γ of min-SNR weighting (Hang et al., 2023), or null for the paper's plain loss (Eq. 6).
        text_pieces: most pieces of 75 tokens that a caption is read in, as the nodes read prompts; what is beyond is
            cut (our choice: room for more than `data caption` writes).
        latents: `mean` or `sample` of the VAE's distribution for the targets. The paper does not say; the mean is our
            choice: SD1.5's VAE adds noise of far less than a hundredth of the latents' deviation, and caches hold the
            mean alone, so that with `sample` each step encodes anew.
        dropout: of the conditioning.
        references: how they differ from targets.
        precision: of the frozen networks and the arithmetic: `bf16` or `fp32`; what is trained is always fp32.
        gradient_checkpointing: takes less memory and about a third more time.
        compile: whether the UNet's repeated blocks are compiled.
        workers: loading processes per device.
        use_cache: whether features are read from `data cache`, where they fit.
        seed: of everything that is drawn.
        save_every: steps between checkpoints.
        keep: how many of the newest checkpoints stay.
        log_every: steps between entries of progress and TensorBoard.
        preview_every: steps between γ sweeps of validation subjects; 0 for none.
        preview_steps, guidance: of those (our choice: half the time of the paper's).
        bad_share: share of unreadable samples at which the run stops.
        uncaptioned: largest share of target frames without a caption on either side of the gate: such a frame trains
            with an empty prompt (our choice: as many as App. B.1 drops the text of on purpose).
        validation: when the validation loss is measured, and on how many groups.
        trackers: accelerate's names of trackers (wandb, mlflow …) that get the log too, beside TensorBoard.
        dial: how `export --calibrate` draws.
        title, license: of the adapter file and its card; without them these say "not stated".
    """

    __pydantic_config__ = CLOSED

    base: Place
    clip: Place
    dino: Place
    data: Annotated[tuple[Place, ...], OneOrSeveral]
    output: Place
    size: Annotated[Count, Field(multiple_of=8, le=4096)] = 512
    buckets: Buckets | None = None
    base_configs: Place | None = None
    vae: Place | None = None
    adapter: Annotated[dict[str, Any], GetPydanticSchema(_adapter_schema)] = field(default_factory=dict)
    start: Place | None = None
    stages: Annotated[tuple[TrainStage, ...], OneOrSeveral] = (TrainStage(100_000), TrainStage(40_000, "high"))
    batch: Count = 16
    accumulation: Count = 1
    image_share: Share = 0.5
    optimizer: Literal["adamw", "adamw8bit"] = "adamw"
    lr: Annotated[Positive, Field(le=1)] = 1e-4
    weight_decay: Annotated[Number, Field(ge=0, le=10)] = 0.01
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    warmup: Whole = 1000
    schedule: Literal["constant", "cosine"] = "constant"
    decay_from: Decay = 0.0
    clip_norm: Positive = 1.0
    ema: Decay = 0.9999
    gamma_spread: Share = 0.0
    min_snr: Positive | None = None
    text_pieces: Count = 3
    latents: Literal["mean", "sample"] = "mean"
    dropout: ConditioningDropout = field(default_factory=ConditioningDropout)
    references: References = field(default_factory=References)
    precision: Literal["bf16", "fp32"] = "bf16"
    gradient_checkpointing: Flag = False
    compile: Flag = False
    workers: Annotated[Whole, Field(le=256)] = 4
    use_cache: Flag = True
    seed: Seed = 0
    save_every: Count = 1000
    keep: Count = 3
    log_every: Count = 50
    preview_every: Whole = 2000
    preview_steps: Sampling = 25
    guidance: Scale = 5.0
    bad_share: Share = 0.01
    uncaptioned: Share = 0.05
    validation: ValidationLoss = field(default_factory=ValidationLoss)
    trackers: Annotated[tuple[Place, ...], OneOrSeveral] = ()
    dial: Dial = field(default_factory=Dial)
    title: str = ""
    license: str = ""

    def __post_init__(self) -> None:
        mistakes = Mistakes()
        if not self.data or not self.stages:
            mistakes.add("the config names no data folder or no stage; give at least one of each")
        twice = sorted({folder for folder in self.data if self.data.count(folder) > 1})
        if twice:
            mistakes.add(f"data names {twice[0]} twice; name each folder once")
        dropped = self.dropout.image + self.dropout.text + self.dropout.both
        if dropped > 1:
            mistakes.add(f"the sum of the dropouts is {dropped:g}; expected a share from 0 to 1")
        elif self.dropout.image + self.dropout.both >= 1:
            mistakes.add("dropout takes the reference from every sample, so nothing would be learned of it; give less")
        images = self.batch * self.image_share
        if abs(images - round(images)) > 1e-9:
            mistakes.add(
                f"a batch of {self.batch} cannot hold a share of {self.image_share} image samples; "
                "give a batch that can be split so"
            )
        if self.stages and self.warmup > self.steps:
            mistakes.add(
                f"warmup is {self.warmup}, and all stages have {self.steps} steps, so lr would never be reached; give "
                "at most as many"
            )
        if self.decay_from and self.schedule != "cosine":
            mistakes.add(
                f"decay_from is {self.decay_from}, but the schedule is {self.schedule}, which never falls; set "
                "schedule: cosine, or leave decay_from out"
            )
        if self.buckets is not None and self.size % self.buckets.step:
            mistakes.add(
                f"size is {self.size}, and buckets have a step of {self.buckets.step}; give a size that is a multiple "
                "of it, or another step"
            )
        with mistakes.gathered():
            self.adapter_config()
        mistakes.tell("{count} mistakes:")

    @property
    def steps(self) -> int:
        """Optimizer steps of all stages."""
        return sum(stage.steps for stage in self.stages)

    def adapter_config(self, **decided: Any) -> FlexIPConfig:
        """The adapter's config: defaults, then what base, encoders and the start decide, then `adapter`.

        Raises:
            FlexIPError: an unknown field, another kind than FlexIP's, or a value out of its range.
        """
        from ...method.adapters import adapter_class  # which imports torch

        values = {**decided, **self.adapter}
        # A dial is measured on what was trained; it is nothing to train with.
        unknown = set(values) - {f.name for f in fields(FlexIPConfig)} | ({"dial"} & set(values))
        if unknown:
            raise FlexIPError(f"the config's adapter has no field {', '.join(sorted(unknown))}")
        config = FlexIPConfig(**values)
        adapter_class(config)
        if config.kind != FlexIPConfig.kind:
            raise FlexIPError(
                f"the config's adapter is of the kind {config.kind}; a run trains the kind {FlexIPConfig.kind} alone, "
                "leave kind out"
            )
        return config


def to_dict(config: TrainConfig) -> dict[str, Any]:
    """The whole config as plain values, for YAML or JSON."""
    return asdict(config)
