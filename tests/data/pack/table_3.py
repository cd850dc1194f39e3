"""The paper's data sets in miniature, as their owners give them out (Table 3)."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from ..drawing import H, W, disc, encoded, mask_picture, moving_disc, picture, save, save_video


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    tar.addfile(entry, io.BytesIO(content))


def coco(mask: np.ndarray) -> dict:
    from pycocotools import mask as coco_mask

    rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(rle["size"]), "counts": rle["counts"].decode("ascii")}


def brush_runs(mask: np.ndarray) -> list[int]:
    """BrushData's RLE: start (from 1) and length, down the columns."""
    flat = np.concatenate([[0], mask.astype(np.int8).ravel(order="F"), [0]])
    edges = np.flatnonzero(np.diff(flat))
    return [int(n) for start, end in edges.reshape(-1, 2) for n in (start + 1, end - start)]


def sa1b(root: Path) -> None:
    """One folder, and one tar as it is downloaded; the annotation lists the background and a speck too."""
    for number in (1, 2, 3):
        annotation = {
            "image": {"image_id": number, "width": W, "height": H, "file_name": f"sa_{number}.jpg"},
            "annotations": [
                {
                    "segmentation": coco(m),
                    "area": int(m.sum()),
                    "bbox": [0, 0, 1, 1],
                    "predicted_iou": 0.9,
                    "stability_score": 0.95,
                    "id": i,
                    "crop_box": [0, 0, W, H],
                    "point_coords": [[1, 1]],
                }
                for i, m in enumerate([np.ones((H, W), bool), disc(), np.eye(H, W, dtype=bool)])
            ],
        }
        content, notes = encoded(picture(number)), json.dumps(annotation).encode()
        if number < 3:
            save(picture(number), root / "sa_000000" / f"sa_{number}.jpg")
            (root / "sa_000000" / f"sa_{number}.json").write_bytes(notes)
        else:
            with tarfile.open(root / "sa_000001.tar", "w") as tar:
                add(tar, f"./sa_{number}.json", notes)
                add(tar, f"./sa_{number}.jpg", content)


def brushdata(root: Path) -> None:
    root.mkdir(parents=True, exist_ok=True)
    with tarfile.open(root / "00000.tar", "w") as tar:
        for number in range(3):
            for suffix, content in (
                ("image", encoded(picture(number))),
                ("caption", f"a disc, number {number}".encode()),
                ("height", str(H).encode()),
                ("width", str(W).encode()),
                ("segmentation", json.dumps({"mask": [brush_runs(disc(x=0.3))], "label": ["disc"]}).encode()),
            ):
                add(tar, f"{number:09}.{suffix}", content)


def mvimgnet(root: Path) -> None:
    for instance in ("0a001", "0a002"):
        for view in range(12):
            folder = root / "7" / instance
            seed = int(instance[-1]) * 100 + view
            save(picture(seed), folder / "images" / f"{view + 1:03}.jpg")
            save(mask_picture(disc()), folder / "masks" / f"{view + 1:03}.png")
        (folder / "sparse" / "0").mkdir(parents=True)
        (folder / "sparse" / "0" / "cameras.bin").write_bytes(b"\0")


def mvimgnet_with_alpha(root: Path) -> None:
    """As AnyDoor keeps it: the mask is the alpha channel of `NNN_….png` beside the picture."""
    for view in range(3):
        image = picture(view)
        image.putalpha(mask_picture(disc()))
        save(picture(view), root / "0" / "1" / f"{view:03}.jpg")
        save(image, root / "0" / "1" / f"{view:03}_bg_removed.png")


def mvhumannet(root: Path) -> None:
    for camera in ("CC32871A004", "CC32871A005", "CC32871A008"):
        for tick in (5, 10, 15):
            seed = 100 * int(camera[-1]) + tick
            save(picture(seed), root / "100846" / "images_lr" / camera / f"{tick:04}_img.jpg")
            save(mask_picture(disc()), root / "100846" / "fmask_lr" / camera / f"{tick:04}_img_fmask.png")


def co3dv2(root: Path) -> None:
    rows = []
    for sequence in ("110_13051_23361", "189_20393_38136"):
        for number in range(10):
            image = f"apple/{sequence}/images/frame{number + 1:06}.jpg"
            mask = f"apple/{sequence}/masks/frame{number + 1:06}.png"
            save(picture(number + 50 * len(rows)), root / image)
            save(mask_picture(disc()), root / mask)
            rows.append(
                {
                    "sequence_name": sequence,
                    "frame_number": number,
                    "frame_timestamp": number / 10,
                    "image": {"path": image, "size": [H, W]},
                    "mask": {"path": mask, "mass": 1234.0},
                    "depth": {"path": ""},
                    "viewpoint": {},
                    "meta": {},
                }
            )
    with gzip.open(root / "apple" / "frame_annotations.jgz", "wt") as file:
        json.dump(rows, file)


def celeba(root: Path) -> None:
    lines = []
    for number in range(1, 8):
        save(picture(number), root / "Img" / "img_align_celeba" / f"{number:06}.jpg")
        lines.append(f"{number:06}.jpg {(2880, 2937, 2937, 2880, 2880, 7, 7)[number - 1]}")
    lines.append("000008.jpg 8")  # an identity of one picture, which is not even there
    (root / "Anno").mkdir()
    (root / "Anno" / "identity_CelebA.txt").write_text("\n".join(lines) + "\n")


def meglass(root: Path) -> None:
    for number, name in enumerate(
        (
            "10032527@N08_identity_4@2897031059_1.jpg",
            "10032527@N08_identity_4@3012938472_0.jpg",
            "10032527@N08_identity_5@1111111111_0.jpg",
            "99999999@N00_identity_0@22222222_0.jpg",
            "99999999@N00_identity_0@33333333_2.jpg",
            "99999999@N00_identity_0@44444444_0.jpg",
        )
    ):
        save(picture(number, (120, 120)), root / "MeGlass_120x120" / name)


def viton_hd(root: Path) -> None:
    for part in ("train", "test"):
        for number in range(2):
            name = f"{number:05}_00"
            save(picture(number + 10 * (part == "test"), (96, 128)), root / part / "image" / f"{name}.jpg")
            save(picture(number + 20, (96, 128)), root / part / "cloth" / f"{name}.jpg")
            save(mask_picture(disc((96, 128))), root / part / "cloth-mask" / f"{name}.jpg")
            parse = np.full((128, 96), 2, np.uint8)
            parse[disc((96, 128))] = 5
            image = Image.fromarray(parse).convert("P")
            image.putpalette(list(range(256)) * 3)
            save(image, root / part / "image-parse-v3" / f"{name}.png")


def dresscode(root: Path) -> None:
    for category, label, first in (("upper_body", 4, 0), ("lower_body", 6, 10), ("dresses", 7, 20)):
        for number in (first, first + 1):
            save(picture(number, (96, 128)), root / category / "images" / f"{number:06}_0.jpg")
            save(picture(number + 100, (96, 128)), root / category / "images" / f"{number:06}_1.jpg")
            parse = np.full((128, 96), 13, np.uint8)
            parse[disc((96, 128))] = label
            save(Image.fromarray(parse), root / category / "label_maps" / f"{number:06}_4.png")
        (root / category / "train_pairs.txt").write_text(f"{first:06}_0.jpg\t{first:06}_1.jpg\n")


def sa_v(root: Path) -> None:
    """Two videos of 24 frames a second, masks on every fourth frame; one has masks by hand, one automatic ones."""
    for video, ending in (("sav_000001", "manual"), ("sav_000002", "auto")):
        save_video(root / "sav_000" / f"{video}.mp4", [moving_disc(int(video[-1]), 60)])
        masklets = [[coco(np.eye(H, W, dtype=bool)), coco(disc(x=0.2 + (4 * i % 60) / 100))] for i in range(15)]
        (root / "sav_000" / f"{video}_{ending}.json").write_text(
            json.dumps(
                {
                    "video_id": video,
                    "video_duration": 2.5,
                    "video_frame_count": 60.0,
                    "video_height": float(H),
                    "video_width": float(W),
                    "masklet": masklets,
                    "masklet_id": [0, 1],
                    "masklet_type": [ending, ending],
                    "masklet_num": 2,
                }
            )
        )


def celebv_hq(root: Path) -> None:
    """Two clips of one long video (raw), and one that its script has cut out (processed)."""
    clips = {}
    for key, start, end in (
        ("M2Ohb0FAaJU_1", 0.0, 1.9),
        ("M2Ohb0FAaJU_2", 2.0, 3.9),
        ("--tXHHzl3mU_0", 81.0, 83.0),
        ("gone_0", 0.0, 1.0),
    ):
        clips[key] = {
            "ytb_id": key.rsplit("_", 1)[0],
            "duration": {"start_sec": start, "end_sec": end},
            "bbox": {"top": 0.1, "bottom": 0.9, "left": 0.25, "right": 0.75},
            "attributes": {"appearance": [0], "action": [1]},
            "version": "v0.1",
        }
    root.mkdir(parents=True, exist_ok=True)
    (root / "celebvhq_info.json").write_text(json.dumps({"meta_info": {}, "clips": clips}))
    save_video(root / "downloaded_celebvhq" / "raw" / "M2Ohb0FAaJU.mp4", [moving_disc(1, 48), moving_disc(2, 48)])
    save_video(root / "downloaded_celebvhq" / "processed" / "--tXHHzl3mU_0.mp4", [moving_disc(3, 48)])


def vfhq(root: Path) -> None:
    for clip in ("Clip+G0DGRma_p48+P0+C0+F11208-11383", "Clip+G0DGRma_p48+P0+C1+F12000-12100"):
        for number in range(6):
            save(picture(1000 * int(clip[-3]) + number), root / clip / f"{number:08}.png")
    for number in range(3):
        save(picture(5000 + number), root / "4ykrcs91T4A#00001.mp4" / "3" / f"{number:04}.jpg")


def openvid_1m(root: Path) -> None:
    rows = ["video,caption,aesthetic score,motion score,temporal consistency score,camera motion,frame,fps,seconds"]
    for name, seed in (("_-0NHyxHyHw_8_0to141.mp4", 1), ("_-0NHyxHyHw_9_0to101.mp4", 2), ("celebv_gone_3.mp4", 0)):
        rows.append(f'{name},"A disc, which crosses a wall of colored tiles.",5.1,3.2,0.99,static,60,24.0,2.5')
        if seed:
            save_video(root / "video" / name, [moving_disc(seed, 60)])
    (root / "data" / "train").mkdir(parents=True)
    (root / "data" / "train" / "OpenVid-1M.csv").write_text("\n".join(rows) + "\n")
