"""Pictures to encoder input: what a user may hand over, and what comes of it."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from flexip_model.common.errors import FlexIPError
from flexip_model.images import pictures
from flexip_model.images.preprocess import (
    CLIP_MEAN,
    CLIP_STD,
    keep_patches,
    normalize,
    prepare,
    preview,
    reference_crop,
    trained_crop,
)

from ..support.paths import ROOT

SIZE, PATCH = 56, 14


def noise(height: int, width: int, channels: int = 3, batch: int = 1, seed: int = 0) -> Tensor:
    return torch.rand(batch, height, width, channels, generator=torch.Generator().manual_seed(seed))


def bicubic(image: Tensor, size: int = SIZE) -> Tensor:
    """(1, H, W, 3) square → (1, 3, S, S): the plain statement of what `prepare` does."""
    resized = F.interpolate(image.permute(0, 3, 1, 2), (size, size), mode="bicubic", antialias=True)
    return resized.clamp(0, 1)


def refusal(images, **arguments) -> str:
    with pytest.raises(FlexIPError) as error:
        prepare(images, SIZE, **arguments)
    return str(error.value)


@pytest.mark.parametrize(("height", "width"), [(100, 50), (50, 100), (200, 50), (64, 64), (10, 13)])
@pytest.mark.promise(44, seed=0)
def test_center_crop_is_the_middle_square_resized(height: int, width: int) -> None:
    image = noise(height, width)
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    wanted = bicubic(image[:, top : top + side, left : left + side])
    found = prepare(image, SIZE)
    assert torch.equal(found.pixels, wanted)
    assert found.subject is None


def test_strips_give_what_one_piece_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    image = noise(300, 200, channels=4)
    whole = prepare(image, SIZE, crop="pad").pixels
    monkeypatch.setattr(pictures, "STRIP_PIXELS", 1000)
    assert torch.equal(prepare(image, SIZE, crop="pad").pixels, whole)


def test_pixels_are_not_rounded_to_8_bits() -> None:
    image = torch.full((1, 9, 9, 3), 0.5004)
    assert prepare(image, SIZE).pixels.mean() == pytest.approx(0.5004, abs=1e-6)


def test_close_to_the_processor_that_clip_was_published_with() -> None:
    import transformers

    # CLIP's own processor; from transformers 5 on that name is another implementation, on tensors.
    kind = getattr(transformers, "CLIPImageProcessorPil", None) or transformers.CLIPImageProcessor
    values = (F.interpolate(torch.rand(1, 3, 20, 30), (120, 180), mode="bilinear")[0] * 255).byte()
    image = Image.fromarray(values.permute(1, 2, 0).numpy())
    processor = kind(size={"shortest_edge": 112}, crop_size={"height": 112, "width": 112})
    theirs = processor(image, return_tensors="pt").pixel_values
    ours = normalize(prepare(image, 112).pixels, CLIP_MEAN, CLIP_STD)
    # theirs rounds to 8 bits after each of two passes: a level and a half of 255, over the smallest std
    assert (ours - theirs).abs().max() <= 1.5 / 255 / min(CLIP_STD)


@pytest.mark.parametrize("crop", ["center", "pad"])
@pytest.mark.promise(43, seed=0)
def test_mixed_sizes_equal_single_encodings(crop: str, figures) -> None:
    images = [noise(80, 40), noise(33, 77, seed=1), noise(60, 60, channels=1, seed=2)]
    together = prepare(images, SIZE, crop=crop)
    for number, image in enumerate(images):
        alone = prepare(image, SIZE, crop=crop)
        figures.worst(43, float((together.pixels[number] - alone.pixels[0]).abs().max()), "difference of the pixels")
        assert torch.equal(together.pixels[number], alone.pixels[0])
        if crop == "pad" and number < 2:
            assert torch.equal(together.subject[number], alone.subject[0])


@pytest.mark.promise(39, seed=0)
def test_gray_and_rgba() -> None:
    gray = noise(30, 30, channels=1)
    assert torch.equal(prepare(gray, SIZE).pixels, prepare(gray.repeat(1, 1, 1, 3), SIZE).pixels)
    rgba = noise(30, 30, channels=4)
    alpha = rgba[..., 3:]
    on_white = rgba[..., :3] * alpha + (1 - alpha)
    assert torch.allclose(prepare(rgba, SIZE).pixels, bicubic(on_white), atol=1e-6)
    clear = torch.cat([noise(30, 30), torch.zeros(1, 30, 30, 1)], -1)
    assert torch.allclose(prepare(clear, SIZE).pixels, torch.ones(1, 3, SIZE, SIZE), atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.promise(40, seed=0)
def test_float_dtypes_become_float32(dtype: torch.dtype) -> None:
    image = noise(20, 20).to(dtype)
    found = prepare(image, SIZE).pixels
    assert found.dtype == torch.float32
    assert torch.equal(found, prepare(image.float(), SIZE).pixels)


def pil_modes() -> dict[str, Image.Image]:
    rgb = Image.fromarray((noise(24, 24)[0] * 255).byte().numpy())
    rgba = rgb.copy()
    rgba.putalpha(128)
    values = np.linspace(0, 65535, 576).reshape(24, 24)
    palette = rgb.quantize(16)
    palette.info["transparency"] = 0
    return {
        **{mode: rgb.convert(mode) for mode in ("1", "L", "LA", "P", "RGB", "CMYK", "YCbCr", "HSV")},
        "RGBA": rgba,
        "P with transparency": palette,
        "I;16": Image.fromarray(values.astype(np.uint16)),
        "I": Image.fromarray(values.astype(np.int32)),
        "F": Image.fromarray((values / 65535).astype(np.float32)),
    }


@pytest.mark.parametrize("mode", pil_modes())
@pytest.mark.promise(39, seed=0)
def test_every_pil_mode(mode: str, figures) -> None:
    image = pil_modes()[mode]
    found = prepare(image, 24).pixels
    if mode in ("I;16", "I", "F"):
        wanted = np.linspace(0, 1, 576).reshape(24, 24).repeat(3).reshape(24, 24, 3)
    else:
        white = Image.new("RGBA", image.size, "white")
        wanted = np.asarray(Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")) / 255
    # Pillow's own compositing rounds to 8 bits, ours does not.
    apart = np.abs(found[0].permute(1, 2, 0).numpy() - wanted).max()
    figures.cases(39, 1, 1, "modes of pictures")
    figures.worst(39, apart * 255, "largest difference", " of 255")
    assert apart <= 1.01 / 255
    assert found.std() > 0.01


@pytest.mark.promise(39, seed=0)
def test_16_bits_keep_more_than_8() -> None:
    image = Image.fromarray(np.full((9, 9), 32768 + 60, dtype=np.uint16))
    assert prepare(image, 9).pixels.mean() == pytest.approx((32768 + 60) / 65535, abs=1e-6)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.promise(44, seed=0)
def test_exif_orientation_is_applied(orientation: int) -> None:
    from PIL import ImageOps

    image = Image.fromarray((noise(20, 40)[0] * 255).byte().numpy())
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    image.save(buffer, "png", exif=exif)
    opened = Image.open(buffer)
    upright = ImageOps.exif_transpose(Image.open(buffer))
    tensor = torch.from_numpy(np.asarray(upright) / np.float32(255))[None]
    assert torch.allclose(prepare(opened, SIZE, crop="pad").pixels, prepare(tensor, SIZE, crop="pad").pixels, atol=1e-6)


def test_damaged_picture_file(tmp_path: Path) -> None:
    path = tmp_path / "cut.png"
    Image.fromarray((noise(200, 200)[0] * 255).byte().numpy()).save(path)
    path.write_bytes(path.read_bytes()[:5000])
    assert "damaged" in refusal(Image.open(path))


@pytest.mark.promise(40, 41, 42)
def test_wrong_input_is_refused_by_name(figures) -> None:
    image = noise(20, 20)
    broken, endless = image.clone(), image.clone()
    broken[0, 3, 4, 1], endless[0, 3, 4, 1] = torch.nan, torch.inf
    cases = {
        "divide 8-bit": (image * 255).byte(),
        "torch.int64": torch.ones(1, 4, 4, 3, dtype=torch.int64),
        "divide by 255": image * 255,
        "−1..1": image * 2 - 1,
        "channels first": image.permute(0, 3, 1, 2),
        "batch dimension": image[0],
        "channels are 1": noise(20, 20, channels=2),
        "shape [20, 20]": image[0, :, :, 0],
        "NaN": broken,
        "NaN or infinite": endless,
        "empty": torch.zeros(1, 0, 20, 3),
        "(shape [0": torch.zeros(0, 20, 20, 3),
        "no picture": [],
        "ndarray": image.numpy(),
        "str": "picture.png",
    }
    found = {name: refusal(case) for name, case in cases.items()}
    assert {name: text for name, text in found.items() if name not in text} == {}
    figures.cases(40, len(found), len(cases), "wrong pictures refused")


@pytest.mark.promise(40, 41)
def test_overshoot_of_resizing_nodes_is_clamped_and_black_is_a_picture() -> None:
    image = noise(20, 20) * 1.3 - 0.15
    assert torch.equal(prepare(image, SIZE).pixels, prepare(image.clamp(0, 1), SIZE).pixels)
    assert prepare(torch.zeros(1, 8, 8, 3), SIZE).pixels.abs().max() == 0


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 8192), (8192, 1), (3, 5000)])
@pytest.mark.parametrize("crop", ["center", "pad"])
@pytest.mark.promise(42)
def test_extreme_shapes_have_a_defined_result(height: int, width: int, crop: str) -> None:
    image = torch.full((1, height, width, 3), 0.25)
    found = prepare(image, SIZE, crop=crop)
    assert found.pixels.shape == (1, 3, SIZE, SIZE)
    keep = keep_patches(found.subject, PATCH)
    if crop == "center" or height == width:
        assert torch.allclose(found.pixels, torch.tensor(0.25), atol=1e-6)
        assert keep is None
    else:
        # One line of picture across the middle, in the patches of one row or column.
        assert (found.pixels[0, 0] < 0.5).sum() == SIZE
        assert keep.sum() == SIZE // PATCH


@pytest.mark.promise(42)
def test_16k_picture_needs_little_memory(figures) -> None:
    script = (
        "import resource, torch\n"
        "from flexip_model.images.preprocess import prepare\n"
        "image = torch.zeros(1, 1, 1, 3, dtype=torch.float32).expand(1, 16384, 16384, 3)\n"
        "prepare(image[:, :64, :64], 224, crop='pad')\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "prepare(image, 224, crop='pad')\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    unit = 1 if sys.platform == "darwin" else 1024
    figures.worst(42, int(done.stdout) * unit / 1e6, "peak memory of 16384 × 16384 pixels", " MB")
    assert int(done.stdout) * unit <= 1024**3


@pytest.mark.promise(44, seed=0)
def test_pad_shows_the_whole_picture_and_drops_the_padding() -> None:
    image = torch.full((1, 28, 56, 3), 0.2)
    found = prepare(image, SIZE, crop="pad")
    assert torch.equal(found.pixels[:, :, :14], torch.ones(1, 3, 14, SIZE))
    assert torch.allclose(found.pixels[:, :, 14:42], torch.tensor(0.2), atol=1e-6)
    assert torch.equal(found.pixels[:, :, 42:], torch.ones(1, 3, 14, SIZE))
    keep = keep_patches(found.subject, PATCH)
    assert keep.view(4, 4).tolist() == [[False] * 4, [True] * 4, [True] * 4, [False] * 4]


@pytest.mark.parametrize("crop", ["center", "pad"])
def test_mask_of_ones_is_no_mask(crop: str) -> None:
    image = noise(40, 60, batch=2)
    without, with_ones = prepare(image, SIZE, crop=crop), prepare(image, SIZE, mask=torch.ones(40, 60), crop=crop)
    assert torch.equal(without.pixels, with_ones.pixels)
    ours, theirs = keep_patches(with_ones.subject, PATCH), keep_patches(without.subject, PATCH)
    assert (ours is None and theirs is None) or torch.equal(ours, theirs)


def test_mask_whitens_the_background_and_drops_its_patches() -> None:
    image = torch.full((1, 56, 56, 3), 0.3)
    mask = torch.zeros(1, 56, 56)
    mask[:, 14:42, 28:] = 1
    found = prepare(image, SIZE, mask=mask)
    assert torch.allclose(found.pixels[0, 0, 14:42, 28:], torch.tensor(0.3), atol=1e-6)
    assert found.pixels[0, :, :14].min() == 1
    keep = keep_patches(found.subject, PATCH)
    assert keep.view(4, 4).nonzero().tolist() == [[1, 2], [1, 3], [2, 2], [2, 3]]
    seen = preview(found, PATCH)
    assert seen.shape == (1, SIZE, SIZE, 3)
    assert torch.allclose(seen[0, 14:42, 28:], torch.tensor(0.3), atol=1e-6)
    assert seen[0, 0, 0, 0] == pytest.approx(0.7)


def test_thin_subject_keeps_its_patches() -> None:
    mask = torch.zeros(1, 224, 224)
    mask[:, :, 100] = 1
    keep = keep_patches(prepare(noise(224, 224), SIZE, mask=mask).subject, PATCH)
    assert keep.view(4, 4).any(0).tolist() == [False, True, False, False]


def test_alpha_as_mask() -> None:
    alpha = torch.zeros(1, 56, 56, 1)
    alpha[:, 14:42, 14:42] = 1
    image = torch.cat([noise(56, 56), alpha], -1)
    by_alpha = prepare(image, SIZE, mask="alpha")
    by_mask = prepare(image[..., :3], SIZE, mask=alpha[..., 0])
    assert torch.equal(by_alpha.pixels, by_mask.pixels)
    assert torch.equal(by_alpha.subject, by_mask.subject)
    assert "no alpha channel" in refusal(noise(8, 8), mask="alpha")


@pytest.mark.promise(44, seed=0)
def test_subject_crop_frames_the_subject() -> None:
    image = torch.full((1, 100, 200, 3), 0.5)
    mask = torch.zeros(1, 100, 200)
    mask[:, 20:60, 140:180] = 1
    found = prepare(image, 48, mask=mask, crop="subject")
    # 40 pixels of subject in a square of 48: 4 pixels of room on each side.
    rows = (found.pixels[0, 0] < 0.9).any(1).nonzero().flatten()
    assert (int(rows[0]), int(rows[-1])) == (4, 43)
    corner = torch.zeros(1, 100, 200)
    corner[:, :40, :40] = 1
    shifted = prepare(image, 48, mask=corner, crop="subject").pixels
    assert shifted[0, 0, 0, 0] < 0.6  # moved into the picture, not padded
    assert "needs a subject mask" in refusal(image, crop="subject")


@pytest.mark.promise(44, seed=0)
def test_box_crop() -> None:
    image = noise(100, 200)
    assert torch.equal(prepare(image, SIZE, crop=(20, 10, 60, 50)).pixels, bicubic(image[:, 10:50, 20:60]))
    assert torch.equal(prepare(image, SIZE, crop=(20, 20, 60, 40)).pixels, bicubic(image[:, 10:50, 20:60]))
    assert "does not lie in the picture" in refusal(image, crop=(20, 10, 260, 50))


@pytest.mark.promise(40, 41)
def test_wrong_masks_are_refused_by_name(figures) -> None:
    image = noise(40, 60)
    cases = {
        "marks nothing": torch.zeros(40, 60),
        "highest value is 0.3": torch.full((40, 60), 0.3),
        "draw the mask on the same picture": torch.eye(64),
        "what Load Image gives for a picture without transparent parts": torch.zeros(64, 64),
        "3 subject masks for 1": torch.ones(3, 40, 60),
        "expected (batch, height, width)": torch.ones(1, 1, 40, 60),
        "divide 8-bit": torch.full((40, 60), 255, dtype=torch.uint8),
        "divide by 255": torch.full((40, 60), 255.0),
        "NaN": torch.full((40, 60), torch.nan),
        "'alfa' is not known": "alfa",
    }
    found = {name: refusal(image, mask=mask) for name, mask in cases.items()}
    assert {name: text for name, text in found.items() if name not in text} == {}
    figures.cases(40, len(found), len(cases), "wrong masks refused")
    aside = torch.zeros(40, 60)
    aside[:, :5] = 1
    assert "outside the center crop" in refusal(image, mask=aside)
    assert "crop is 'middle'" in refusal(image, crop="middle")


def test_a_mask_of_ones_of_any_size_is_no_mask() -> None:
    """The inverted placeholder that ComfyUI's Load Image gives for an opaque picture: 64×64, whatever the picture."""
    for height, width in ((128, 192), (64, 64), (40, 300)):
        image = noise(height, width)
        masked, plain = prepare(image, SIZE, mask=torch.ones(1, 64, 64)), prepare(image, SIZE)
        assert torch.equal(masked.pixels, plain.pixels)
        assert masked.subject is None and plain.subject is None


def test_mask_of_another_size_but_the_same_proportions() -> None:
    image = noise(80, 120)
    small, large = torch.zeros(40, 60), torch.zeros(80, 120)
    small[10:30, 20:40], large[20:60, 40:80] = 1, 1
    ours = keep_patches(prepare(image, SIZE, mask=small).subject, PATCH)
    assert torch.equal(ours, keep_patches(prepare(image, SIZE, mask=large).subject, PATCH))


@pytest.mark.parametrize(
    ("recorded", "masked", "crop"),
    [
        ("pad", False, "pad"),
        ("pad", True, "pad"),
        ("subject", True, "subject"),
        ("subject", False, "pad"),
        ("center", False, "center"),
        ("center", True, "follow"),
        (None, True, "center"),
        ("of a later version", False, "center"),
    ],
)
def test_a_picture_is_cropped_as_an_adapters_references_were(recorded: str | None, masked: bool, crop: str) -> None:
    assert trained_crop(recorded, masked) == crop


def test_following_a_mask_is_what_training_does_with_the_subjects_box() -> None:
    image, mask = noise(40, 90), torch.zeros(40, 90)
    mask[10:30, 70:85] = 1
    box = reference_crop("center", (90, 40), (70, 10, 85, 30), masked=True)
    assert box == (50, 0, 90, 40)
    followed, boxed = prepare(image, SIZE, mask, "follow"), prepare(image, SIZE, mask, box)
    assert torch.equal(followed.pixels, boxed.pixels)
    assert reference_crop("center", (90, 40), None, masked=False) == "center"
