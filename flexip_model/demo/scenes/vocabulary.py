"""The words that the base draws most often, and the drawing that each of them has in each of its styles.

The base has a word for every emoji, its name; these 160 are asked for more often (`lessons`) and take the place of
their emoji's longer names ("dog" for "dog face"). Our choice: what people try first (animals, food, vehicles, things at
hand), whose pictures stay clear at 128 px, are drawn from nearly one side by all artists, and are not told apart by
small marks alone ("police car" beside "car"). `FLUENT_HELD_OUT`, 56 of them, are words of held-out Fluent concepts: the
base learns them from the other two artists, so that an adapter's held-out reference is a thing that the base has a word
for.
"""

from __future__ import annotations

from dataclasses import replace

from .store import Look, Store

DRAWN_BY = {"3d": "fluent", "cartoon": "noto", "flat": "twemoji"}
"""The styles that are judged, and whose drawing each is; Fluent's flat and line drawings are learned too."""

ALL_ARTISTS = {
    "dog": "1f436",
    "cat": "1f431",
    "fox": "1f98a",
    "lion": "1f981",
    "tiger": "1f42f",
    "bear": "1f43b",
    "panda": "1f43c",
    "koala": "1f428",
    "rabbit": "1f430",
    "mouse": "1f42d",
    "pig": "1f437",
    "cow": "1f42e",
    "horse": "1f434",
    "frog": "1f438",
    "monkey": "1f435",
    "chicken": "1f414",
    "penguin": "1f427",
    "owl": "1f989",
    "duck": "1f986",
    "parrot": "1f99c",
    "flamingo": "1f9a9",
    "elephant": "1f418",
    "giraffe": "1f992",
    "zebra": "1f993",
    "unicorn": "1f984",
    "dinosaur": "1f995",
    "whale": "1f433",
    "shark": "1f988",
    "dolphin": "1f42c",
    "octopus": "1f419",
    "crab": "1f980",
    "fish": "1f420",
    "butterfly": "1f98b",
    "bee": "1f41d",
    "ladybug": "1f41e",
    "snail": "1f40c",
    "apple": "1f34e",
    "banana": "1f34c",
    "strawberry": "1f353",
    "watermelon": "1f349",
    "lemon": "1f34b",
    "pineapple": "1f34d",
    "cherries": "1f352",
    "pear": "1f350",
    "carrot": "1f955",
    "avocado": "1f951",
    "mushroom": "1f344",
    "corn": "1f33d",
    "hamburger": "1f354",
    "pizza": "1f355",
    "hot dog": "1f32d",
    "french fries": "1f35f",
    "donut": "1f369",
    "ice cream": "1f366",
    "pancakes": "1f95e",
    "taco": "1f32e",
    "bread": "1f35e",
    "cheese": "1f9c0",
    "sunflower": "1f33b",
    "tulip": "1f337",
    "rose": "1f339",
    "cactus": "1f335",
    "palm tree": "1f334",
    "tree": "1f332",
    "maple leaf": "1f341",
    "robot": "1f916",
    "ghost": "1f47b",
    "skull": "1f480",
    "pumpkin": "1f383",
    "rocket": "1f680",
    "car": "1f697",
    "bus": "1f68c",
    "fire engine": "1f692",
    "tractor": "1f69c",
    "helicopter": "1f681",
    "airplane": "2708-fe0f",
    "sailboat": "26f5",
    "train": "1f682",
    "castle": "1f3f0",
    "guitar": "1f3b8",
    "drum": "1f941",
    "soccer ball": "26bd",
    "basketball": "1f3c0",
    "balloon": "1f388",
    "teddy bear": "1f9f8",
    "gift": "1f381",
    "crown": "1f451",
    "top hat": "1f3a9",
    "light bulb": "1f4a1",
    "bell": "1f514",
    "key": "1f511",
    "laptop": "1f4bb",
    "television": "1f4fa",
    "pencil": "270f-fe0f",
    "backpack": "1f392",
    "shirt": "1f455",
    "fire": "1f525",
    "snowman": "26c4",
    "sun": "2600-fe0f",
    "rainbow": "1f308",
    "diamond": "1f48e",
    "teapot": "1fad6",
    "coffee": "2615",
    "beer": "1f37a",
}
"""Words that the base learns from all three artists, or from two where another one's drawing is held out, with Fluent's
code of the emoji that shows each."""
FLUENT_HELD_OUT = {
    "tomato": "1f345",
    "eggplant": "1f346",
    "grapes": "1f347",
    "peach": "1f351",
    "coconut": "1f965",
    "broccoli": "1f966",
    "onion": "1f9c5",
    "cookie": "1f36a",
    "chocolate bar": "1f36b",
    "cupcake": "1f9c1",
    "birthday cake": "1f382",
    "popcorn": "1f37f",
    "steak": "1f969",
    "salad": "1f957",
    "noodle bowl": "1f35c",
    "cocktail": "1f378",
    "football": "1f3c8",
    "volleyball": "1f3d0",
    "house": "1f3e0",
    "sheep": "1f411",
    "goat": "1f410",
    "turtle": "1f422",
    "wolf": "1f43a",
    "peacock": "1f99a",
    "hippo": "1f99b",
    "orangutan": "1f9a7",
    "beaver": "1f9ab",
    "spider": "1f577-fe0f",
    "shoe": "1f45f",
    "boot": "1f462",
    "alien": "1f47d",
    "space invader": "1f47e",
    "pill": "1f48a",
    "package": "1f4e6",
    "horn": "1f4ef",
    "camera": "1f4f7",
    "computer": "1f5a5-fe0f",
    "printer": "1f5a8-fe0f",
    "framed picture": "1f5bc-fe0f",
    "trash can": "1f5d1-fe0f",
    "bicycle": "1f6b2",
    "puzzle piece": "1f9e9",
    "soap": "1f9fc",
    "parachute": "1fa82",
    "flute": "1fa88",
    "chair": "1fa91",
    "banjo": "1fa95",
    "screwdriver": "1fa9b",
    "ladder": "1fa9c",
    "potted plant": "1fab4",
    "cloud": "2601-fe0f",
    "umbrella": "2602-fe0f",
    "telephone": "260e-fe0f",
    "helmet": "26d1-fe0f",
    "star": "2b50",
    "credit card": "1f4b3",
}
"""Words of held-out Fluent concepts."""
WORDS: dict[str, str] = ALL_ARTISTS | FLUENT_HELD_OUT
_WORD_OF = {code: word for word, code in WORDS.items()}


def word_of(look: Look) -> str | None:
    """The word that the base's prompts call a look by in place of its emoji's name; None for frames of animations, and
    where the name is the word."""
    return None if look.frame else _WORD_OF.get(look.subject.code.rsplit(":", 1)[-1])


def rename(store: Store) -> Store:
    """A store whose pictures of the base's words are called by these words."""

    def renamed(look: Look) -> Look:
        word = word_of(look)
        return look if word is None else replace(look, subject=replace(look.subject, name=word))

    return Store(store.pixels, [renamed(look) for look in store.looks])
