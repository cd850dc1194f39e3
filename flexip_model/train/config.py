"""What a training run is told, in one YAML file; the defaults are the paper's (section in brackets)."""

from __future__ import annotations

import types
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from ..config import FlexIPConfig
from ..errors import FlexIPError

CONFIGS = Path(__file__).parent / "configs"
NAMED = ("paper", "one_card", "demo")


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
class Dropout:
    """Shares of samples without image, without text, without both: three exclusive cases [App. B.1]."""

    image: float = 0.05
    text: float = 0.05
    both: float = 0.05


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
        clip_norm: largest norm of the gradient (our choice).
        ema: decay of the averaged weights, which previews and adapter files take (our choice).
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
    clip_norm: float = 1.0
    ema: float = 0.9999
    min_snr: float | None = None
    dropout: Dropout = Dropout()
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
        whole = {"size": self.size, "batch": self.batch, "accumulation": self.accumulation, "keep": self.keep,
                 "save_every": self.save_every, "log_every": self.log_every,
                 **{f"stages[{i}].steps": s.steps for i, s in enumerate(self.stages)}}
        for name, value in whole.items():
            if value < 1:
                raise FlexIPError(f"{name} is {value}; expected at least 1")
        shares = {"image_share": self.image_share, "ema": self.ema, "bad_share": self.bad_share,
                  **{f"references.{k}": v for k, v in asdict(self.references).items() if k != "crop"},
                  **{f"dropout.{k}": v for k, v in asdict(self.dropout).items()},
                  "the sum of the dropouts": sum(asdict(self.dropout).values())}
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
        unknown = set(values) - {f.name for f in fields(FlexIPConfig)}
        if unknown:
            raise FlexIPError(f"the config's adapter has no field {', '.join(sorted(unknown))}")
        if isinstance(values.get("channels"), list):
            values["channels"] = tuple(values["channels"])
        return FlexIPConfig(**values)


def load_config(path: str | Path, overrides: dict[str, Any] | None = None) -> TrainConfig:
    """Read a config file; `extends: NAME` in it begins from one that ships (paper, one_card, demo) or another file.

    Paths in it are relative to the file's folder. `overrides` (dotted keys) win.

    Raises:
        FlexIPError: no such file, not YAML, an unknown key, a value of the wrong type or out of its range.
    """
    values = _read(Path(path), ())
    for key, value in (overrides or {}).items():
        place = values
        *outer, last = key.split(".")
        for name in outer:
            place = place.setdefault(name, {})
        place[last] = value
    return _build(TrainConfig, values, str(path))


def to_dict(config: TrainConfig) -> dict[str, Any]:
    """The whole config as plain values, for YAML or JSON."""
    return asdict(config)


def from_dict(values: dict[str, Any]) -> TrainConfig:
    """The reverse of `to_dict`."""
    config: TrainConfig = _build(TrainConfig, values, "the run's config")
    return config


def _read(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    import yaml

    if not path.is_file() and path.name in NAMED:
        path = CONFIGS / f"{path.name}.yaml"
    if not path.is_file():
        raise FlexIPError(f"there is no config {path}; give a YAML file, or one of {', '.join(NAMED)}")
    if path.resolve() in seen:
        raise FlexIPError(f"{path} extends itself")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise FlexIPError(f"{path} is not YAML ({' '.join(str(error).split())})") from error
    if not isinstance(values, dict):
        raise FlexIPError(f"{path} holds no `key: value` lines")
    base: dict[str, Any] = {}
    if "extends" in values:
        parent = str(values.pop("extends"))
        base = _read(Path(parent) if parent in NAMED else path.parent / parent, (*seen, path.resolve()))
    _resolve(values, path.parent)
    merged = {**base, **values}
    for key in ("references", "dropout", "adapter"):
        if isinstance(base.get(key), dict) and isinstance(values.get(key), dict):
            merged[key] = {**base[key], **values[key]}
    return merged


def _resolve(values: dict[str, Any], folder: Path) -> None:
    """Make relative paths relative to the config's folder; in a config that ships, only those into the pack."""
    ships = folder.resolve() == CONFIGS.resolve()

    def at(value: Any) -> Any:
        inside = isinstance(value, str) and not Path(value).is_absolute() and (not ships or value.startswith(".."))
        inside = inside and "://" not in value
        return str((folder / value).resolve()) if inside else value

    for key in ("clip", "dino", "output", "start"):
        if values.get(key) is not None:
            values[key] = at(values[key])
    # A name on a model hub looks like a path too.
    if isinstance(values.get("base"), str) and (folder / values["base"]).exists():
        values["base"] = at(values["base"])
    data = values.get("data")
    if data is not None:
        values["data"] = [at(d) for d in (data if isinstance(data, list) else [data])]


def _build(cls: Any, values: Any, where: str) -> Any:
    if not isinstance(values, dict):
        raise FlexIPError(f"{where} is {values!r}; expected `key: value` lines")
    types_ = get_type_hints(cls)
    unknown = sorted(set(values) - set(types_))
    if unknown:
        raise FlexIPError(f"{where} has an unknown key {unknown[0]}; known are {', '.join(types_)}")
    missing = [f.name for f in fields(cls) if f.name not in values and _required(f)]
    if missing:
        raise FlexIPError(f"{where} lacks {', '.join(missing)}")
    return cls(**{key: _cast(types_[key], value, f"{where}: {key}") for key, value in values.items()})


def _required(field_: Any) -> bool:
    from dataclasses import MISSING

    return field_.default is MISSING and field_.default_factory is MISSING


def _cast(wanted: Any, value: Any, where: str) -> Any:
    origin = get_origin(wanted)
    if origin in (Union, types.UnionType):
        options = get_args(wanted)
        if value is None:
            return None
        return _cast(next(o for o in options if o is not type(None)), value, where)
    if is_dataclass(wanted):
        return _build(wanted, value, where)
    if origin is tuple:
        inner = get_args(wanted)
        items = value if isinstance(value, (list, tuple)) else [value]
        if inner[-1] is not Ellipsis and len(items) != len(inner):
            raise FlexIPError(f"{where} has {len(items)} values; expected {len(inner)}")
        return tuple(_cast(inner[0], item, where) for item in items)
    if origin is dict:
        if not isinstance(value, dict):
            raise FlexIPError(f"{where} is {value!r}; expected `key: value` lines")
        return value
    if wanted is float and isinstance(value, str):
        # YAML reads 1e-4 as text: its numbers need a point.
        try:
            value = float(value)
        except ValueError:
            raise FlexIPError(f"{where} is {value!r}; expected a number") from None
    good = {float: (int, float), int: (int,), bool: (bool,), str: (str,)}[wanted]
    if not isinstance(value, good) or (wanted is not bool and isinstance(value, bool)):
        names = {float: "a number", int: "a whole number", bool: "true or false", str: "text"}
        raise FlexIPError(f"{where} is {value!r}; expected {names[wanted]}")
    return wanted(value)
