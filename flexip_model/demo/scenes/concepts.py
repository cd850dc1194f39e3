"""Which emoji become subjects, and which of them are one concept. What is held out is an instance: a concept as one
artist draws it."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

GROUPS = ("Animals & Nature", "Food & Drink", "Travel & Places", "Activities", "Objects")
ARTISTS = ("fluent", "noto", "twemoji")
"""Who drew the pictures: Microsoft's Fluent Emoji, Google's Noto Emoji, Twemoji."""
EXTRA = ("robot", "ghost", "alien", "alien monster", "skull")
"""The only smileys: the others differ by a facial expression on the same yellow ball."""

_LEFT_OUT = re.compile(
    r"o’clock|-thirty|moon(?! cake| viewing)|globe|map of|speaker|banknote|musical (note|score)|mailbox|chart|suit$"
    r"|medal|locked|clock|calendar|file|tray|page|bookmark|battery|mobile phone with|with lightning"
    r"|hammer and|cigarette|wedding|hotel|hospital|love|post office|convenience|school|department store|bank|office"
    r"|kaaba|mosque|synagogue|church|temple|shrine|Statue|Tokyo|people|hamsa|prayer|fog|milky way|night with"
    r"|sunrise|sunset|cityscape|bridge at|identification|placard|stop sign|construction|motorway|railway track"
    r"|stadium|building|elevator|x-ray|drop of blood|ticket|level slider|control knobs|label|link|receipt|wheelchair"
    r"|military|pistol|coffin|headstone|urn|dagger|swords|bomb$|syringe|knife$|spoon$|bikini|briefs|chopsticks"
)
_CUT = re.compile(r"\s+(with|without|behind|of|on|in|and|at|showing|over)\s+.*$")
_ALIAS = {
    "chick": "chicken",
    "rooster": "chicken",
    "ewe": "sheep",
    "ram": "sheep",
    "ox": "cow",
    "buffalo": "cow",
    "bison": "cow",
    "poodle": "dog",
    "boar": "pig",
    "donkey": "horse",
    "zebra": "horse",
    "unicorn": "horse",
    "moose": "deer",
    "swan": "duck",
    "goose": "duck",
    "taxi": "car",
    "automobile": "car",
    "vehicle": "car",
    "truck": "car",
    "lorry": "car",
    "trolleybus": "bus",
    "minibus": "bus",
    "ambulance": "car",
    "engine": "car",
    "metro": "train",
    "tram": "train",
    "locomotive": "train",
    "rail": "train",
    "monorail": "train",
    "railway": "train",
    "e-mail": "envelope",
    "notebook": "book",
    "orca": "whale",
    "dolphin": "whale",
    "leopard": "tiger",
    "mammoth": "elephant",
    "rat": "mouse",
    "dove": "bird",
    "eagle": "bird",
    "hut": "house",
    "motorcycle": "scooter",
    "ship": "boat",
    "ferry": "boat",
    "sailboat": "boat",
    "speedboat": "boat",
    "canoe": "boat",
    "airplane": "plane",
    "departure": "plane",
    "arrival": "plane",
    "blossom": "flower",
    "hibiscus": "flower",
    "rosette": "flower",
    "rose": "flower",
    "tulip": "flower",
    "sunflower": "flower",
    "lotus": "flower",
    "hyacinth": "flower",
    "clover": "shamrock",
    "shortcake": "cake",
    "cupcake": "cake",
    "tangerine": "lemon",
    "lime": "lemon",
    "teacup": "teapot",
    "blowfish": "fish",
    "boot": "shoe",
    "sandal": "shoe",
    "sunglasses": "glasses",
    "goggles": "glasses",
    "softball": "baseball",
    "sari": "dress",
    "kimono": "dress",
    "fuji": "mountain",
    "volcano": "mountain",
    "comet": "star",
    "honeybee": "bee",
}
_PLURAL = re.compile(r"(?<=[a-rt-z])s$")
_NOT_PLURAL = {"glasses", "sunglasses", "goggles", "jeans", "rhinoceros", "tennis"}


@dataclass(frozen=True)
class Subject:
    """One emoji as one artist draws it.

    Attributes:
        code: its hex code points, "1f431", as Fluent's files are named; of other artists "noto:1f431".
        name: in English.
        concept: see `concept_of`.
        artist: one of `ARTISTS`.
    """

    code: str
    name: str
    concept: str
    artist: str = "fluent"

    def by(self, artist: str) -> Subject:
        """The same emoji as another artist than Fluent draws it."""
        return replace(self, code=f"{artist}:{self.code}", artist=artist)


def concept_of(name: str) -> str:
    """The head noun of an emoji's name: "cat face", "black cat" and "cat" are all "cat".

    Our choice: what stands before the first preposition, without a trailing "face", its last word in the
    singular, and a list of synonyms ("rooster" is "chicken"). It joins too much rather than too little
    ("hot dog" is "dog"), which is the safe side for a held-out split.
    """
    words = _CUT.sub("", name.lower()).split()
    while len(words) > 1 and words[-1] in {"face", "done"}:
        words.pop()
    head = words[-1]
    if head not in _NOT_PLURAL and not head.endswith(("us", "ss")):
        head = {"cherries": "cherry", "blueberries": "blueberry", "leaves": "leaf"}.get(head, _PLURAL.sub("", head))
    return _ALIAS.get(head, head)


def select(emoji: dict[str, dict]) -> list[Subject]:
    """Subjects among the entries of `unicode-emoji-json`'s `data-by-emoji.json`, ordered by code.

    Left out: flags, signs and symbols, people and hands, smileys, clock faces and moon phases (many nearly
    equal pictures), buildings of worship and weapons.
    """
    subjects = []
    for char, entry in emoji.items():
        name = entry["name"]
        if name in EXTRA or (entry["group"] in GROUPS and not _LEFT_OUT.search(name)):
            code = "-".join(f"{ord(c):04x}" for c in char)
            subjects.append(Subject(code, name.lower(), concept_of(name)))
    return sorted(subjects, key=lambda s: s.code)


def draw_heldout(concepts: list[str], share: float = 0.15, salt: str = "flexip-demo-1") -> list[str]:
    """The concepts to hold out: those with the smallest hash, so that a later version of the list keeps them."""
    ranked = sorted(set(concepts), key=lambda c: hashlib.sha256(f"{salt}:{c}".encode()).hexdigest())
    return sorted(ranked[: round(share * len(ranked))])


@cache
def heldout_instances() -> frozenset[tuple[str, str]]:
    """The committed list, as (artist, concept): what encoders and adapters never read.

    Of Fluent these are the concepts of version 4 of the shipped model, which held them out whole; the base now learns
    their words from the two other artists. Of Noto and of Twemoji they are fewer, and concepts that Fluent shows.
    """
    path = Path(__file__).with_name("heldout.json")
    listed = json.loads(path.read_text(encoding="utf-8"))
    return frozenset((artist, concept) for artist in ARTISTS for concept in listed[artist])
