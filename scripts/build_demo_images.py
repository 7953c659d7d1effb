"""Build the image set that ships with the package, from Debian's package `openclipart-png`.

    python scripts/build_demo_images.py --download
    python scripts/build_demo_images.py /usr/share/openclipart/png

Writes `images.parquet` and `CREDITS` into `manyviews/data/demo`. Needs Pillow, numpy and pyarrow, and apt for
`--download`. Open Clip Art's pictures are in the public domain.

A picture enters if its path fits a class, it is not excluded below, it has color or shading, and no other picture
looks just like it. It is composited on white, cropped to its content, resized and padded to a square.

Pictures of one series, by name or by look, form a group, and a group is on one side of the split. So no test picture
has a near-copy among the training pictures.
"""

from __future__ import annotations

import argparse
import html
import json
import re
import subprocess
import tempfile
from collections import Counter, defaultdict
from concurrent.futures import ProcessPoolExecutor
from fnmatch import fnmatchcase
from functools import partial
from hashlib import blake2b
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

TARGET = Path(__file__).parents[1] / "manyviews" / "data" / "demo"
SIZE = 64
MARGIN = 2
QUALITY = 95
TEST_SHARE = 0.2
SAME = 0.08  # relative difference of two thumbnails at which one picture is dropped
NEAR = 0.3  # ... at which both are kept on one side of the split
NEAR_SHAPE = 0.98  # correlation of two gray thumbnails at which one is the other in another color
LARGEST_PIXELS = 200_000_000

# Patterns of paths, in which `*` also matches slashes. The first class that fits is taken.
CLASSES = {
    "vehicle": """transportation/vehicles/[!c]* transportation/vehicles/car.png transportation/boating/boat_*
        transportation/boating/sailboat_illustration.png transportation/ambulans* transportation/autos_*
        transportation/bicycle_* transportation/bi[gk]* transportation/blazer* transportation/bmw*
        transportation/bus[0-9]* transportation/bus_01* transportation/car_* transportation/dodge*
        transportation/fire_engine* transportation/formula* transportation/hummer* transportation/motorcycle*
        transportation/old_car* transportation/old_truck* transportation/pallone* transportation/plane*
        transportation/redcar* transportation/road_runner* transportation/skoda* transportation/small_truck*
        transportation/toyota* transportation/tramway* transportation/truck* people/fire_engine*
        unsorted/ambulanza* unsorted/betoniera* unsorted/caterpillar* unsorted/Montacarichi*
        recreation/holiday/sportcar* computer/icons/etiquette-theme/*4wd* people/car_ride* people/beach_trip*
        recreation/toys/wagon* recreation/toys/kiddy_train*""",
    "tool": """tools/* office/* containers/* education/* science/medicine/* electronics/* computer/hardware/*
        buildings/furniture/* unsorted/Pittura* unsorted/asse_da* unsorted/blocco_n* unsorted/candela*
        unsorted/carretta* unsorted/lampada* unsorted/metro* unsorted/motosega* unsorted/pinzatrice*
        unsorted/proiettore* unsorted/provett* unsorted/sapone* unsorted/scala* unsorted/scatolone*
        unsorted/sega_* unsorted/serratura* unsorted/stetoscopio* unsorted/tavolozza*
        unsorted/zaino* unsorted/sacco_* unsorted/guanti* geography/garmin* geography/gps_*""",
    "animal": """animals/* unsorted/Anatra* unsorted/[Cc]olombo* unsorted/Pinguino* unsorted/elefant*
        unsorted/gabbiano* unsorted/pennuto* unsorted/pescetto* unsorted/struzzo* unsorted/striscia_*""",
    "food": """food/* unsorted/Tacchino* unsorted/tramezzino* unsorted/Uovo*""",
    "person": """people/* computer/icons/people_* unsorted/Traslocatore* unsorted/carpentiere* unsorted/imbianchino*
        unsorted/ragazz* unsorted/principessa.png unsorted/signorin* unsorted/corridore* unsorted/trekking*
        unsorted/Martellare* unsorted/donna_casinista* recreation/sports/sport_aerobica*""",
    "plant": """plants/* signs_and_symbols/map_symbols/tree_* signs_and_symbols/map_symbols/plant_* unsorted/ros[ae]*
        unsorted/foglie_*""",
    "building": """buildings/* unsorted/igloo* unsorted/fattoria* unsorted/aziendaVendite* unsorted/Condominio*
        signs_and_symbols/map_symbols/castle* transportation/vehicles/lighthouse*""",
    "flag": "signs_and_symbols/flags/*",
    "button": "signs_and_symbols/led/* computer/buttons/* buttons/*",
    "sign": "transportation/* signs_and_symbols/*",
    "leisure": "recreation/*",
    "icon": "computer/icons/*",
}
# Not what the folder says, several things at once, broken ("linked image not found"), text, portraits and photographs
# of people, weapons, nudity, logos and mascots, and the versions in black and white.
EXCLUDED = """*_bw* *-bw-* *b_amp_w* *_bn.png *sketch* *contour* *silhouet* *aiga*
    animals/2_dead* animals/lucchetto* animals/tante_orme* animals/three_eyes* animals/tatoo* animals/cymru*
    animals/fish/kallisti* animals/birds/duck_yellow* animals/birds/turkey_on* animals/birds/wing_* animals/architetto*
    animals/birds/mirjam* animals/birds/manager* animals/*tux* animals/mammals/emule* animals/mammals/skoynk*
    animals/mammals/squeek* animals/mammals/shaezy* animals/mammals/housecats/cat_scra* animals/bugs/virus*
    animals/bugs/bug_nicu* animals/mascot* animals/mosquito_peterm* animals/mammals/housecats/cartoon_vgcats*
    animals/fantasy/mermaid* animals/mammals/crazy_monkey* unsorted/striscia*
    food/chef* food/come_si* food/toque* food/meatgrinder* food/mix_cucina* food/fruit/tree_whit* food/fruit/eris*
    food/fruit/tile_* food/fruit/straw_tote* food/fruit/gumnut* food/beverages/alcohol/noi_due* food/*fuoco_da*
    food/beverages/alcohol/ontologia* food/beverages/macchina* food/beverages/flower-pot* food/bread_and_wine*
    food/meats_and_eggs/frying_pan* food/beverages/icecube_benji*
    people/clothing/* people/bodypart/* people/a_* people/einstein* people/grandpa* people/john* people/martin*
    people/my_lovely* people/self_portrait* people/silvia* people/stripper* people/sexy* people/female* people/hide_*
    people/stylized_yoga* people/safety_pin* people/samoa* people/van_gogh* people/gender* people/skull*
    people/smilies/[!cs]* people/smilies/c[ry]* people/smilies/cross* people/smilies/splash* people/fingerprint*
    people/blue_eye* people/woman_eye* people/eyes_* people/enthusiast* people/breakdance* people/handstand*
    people/baby_* people/ballerina* people/don_t_panic* people/alien* people/fireman_alarm* people/fireman_wedding*
    people/elfish* people/jazz* people/hygieia* people/blacksmit* people/3_faces* people/rich_young* people/dancers*
    people/cm1* people/bad_guy* people/smilies/chav* people/water_skier* people/sailing_kids* people/wedding_sign*
    people/grampa* buildings/homes/houses_jon*
    plants/cannabis* plants/human* plants/trees/bow* plants/trees/bypass* plants/trees/christmas_balls*
    plants/fall_scene* plants/acorn* plants/island_palm*
    buildings/brick* buildings/capitello* buildings/old_sign* buildings/wall* buildings/perspectival*
    buildings/furniture/wooden_barrel* buildings/homes/house_fudriot*
    transportation/shelby* transportation/*soviet* transportation/vehicles/cr* transportation/vehicles/cu*
    transportation/vehicles/shelby* transportation/vehicles/rocket* transportation/vehicles/the_mad*
    transportation/vehicles/cycle_* transportation/boating/[!bs]* transportation/boating/boating* *sailing_*
    transportation/boating/sailboat_illustration_labels* transportation/anchor* transportation/little_tan*
    transportation/roadsigns/nws* transportation/street_sign* transportation/roadsigns/bus_symbol*
    signs_and_symbols/*_symbol_1* signs_and_symbols/clouds* signs_and_symbols/cloud_* signs_and_symbols/money/*
    signs_and_symbols/money.png signs_and_symbols/map_symbols/[!tpc]* signs_and_symbols/map_symbols/co*
    signs_and_symbols/weather/* signs_and_symbols/clocks/* signs_and_symbols/kanji* signs_and_symbols/mpcad*
    signs_and_symbols/*star_rat* signs_and_symbols/barcode* signs_and_symbols/font* signs_and_symbols/for_sale*
    signs_and_symbols/awards/* signs_and_symbols/bitte* signs_and_symbols/sheriff* signs_and_symbols/stemma*
    signs_and_symbols/eye_* signs_and_symbols/grune* signs_and_symbols/chodovian* signs_and_symbols/teschio*
    signs_and_symbols/skull* signs_and_symbols/hazard/* signs_and_symbols/card_* signs_and_symbols/chain*
    signs_and_symbols/_* signs_and_symbols/argentina* signs_and_symbols/british* signs_and_symbols/canada*
    signs_and_symbols/denmark* signs_and_symbols/flag_of* signs_and_symbols/pitcairn* signs_and_symbols/simbolo_g*
    signs_and_symbols/vancouver* signs_and_symbols/car_[01]* signs_and_symbols/illuminati* signs_and_symbols/elder*
    signs_and_symbols/probability* signs_and_symbols/radio_wire* signs_and_symbols/flame* signs_and_symbols/nuage*
    signs_and_symbols/yang* signs_and_symbols/sung* signs_and_symbols/zero_stars* signs_and_symbols/passo*
    signs_and_symbols/flags/semaphore/* signs_and_symbols/flags/*ampel* signs_and_symbols/flags/*inuit*
    signs_and_symbols/flags/*route_* signs_and_symbols/flags/*copileft* signs_and_symbols/flags/*bretagne_01*
    signs_and_symbols/flags/*fleur_de* signs_and_symbols/flags/*citt_di* signs_and_symbols/flags/*coat_of*
    signs_and_symbols/flags/*corsica_patricia* signs_and_symbols/flags/*confeder* signs_and_symbols/flags/iraqi*
    signs_and_symbols/flags/miscellany/[bnuw]* signs_and_symbols/flags/*missisipi* office/fabbrica*
    computer/buttons/shopping* computer/buttons/bunch* computer/buttons/svg_* computer/buttons/rss*
    computer/buttons/atom* computer/buttons/fancy* computer/buttons/io_* buttons/*
    recreation/games/cards/* recreation/religion/* recreation/games/brown* recreation/games/two_cats*
    recreation/games/photo* recreation/games/celtic* recreation/games/tamerlane* recreation/games/chess/*
    recreation/music/piano_* recreation/sports/sport_* recreation/party/dancer* recreation/art/*
    recreation/holiday/footprint* recreation/holiday/fatherchr* recreation/holiday/sailing* recreation/toys/domo*
    tools/weapons/* tools/smoke* tools/gallows* tools/lotion* office/lotion* office/handshake* office/milimetered*
    office/cross_hand* office/manuscriot* electronics/filmphoto* office/large_braces* office/telephone/numero*
    office/arrow1* education/logaritmic* education/school* education/inservice* tools/natural_gas* tools/nodding*
    computer/icons/flat-theme/* computer/icons/lemon-theme/*math_* computer/icons/*firefox* computer/icons/*mozilla*
    computer/icons/*thunderbird* computer/icons/*windows* computer/icons/*samba* computer/icons/*java*
    computer/icons/*opera* computer/icons/*acroread* computer/icons/*pdf* computer/icons/*real* computer/icons/*hdd_*
    computer/icons/*wine* computer/icons/*penguin* computer/icons/*home[0-9]* computer/icons/*pinkhome*
    computer/icons/*netbean* computer/icons/*rpm* computer/icons/*collection_of* computer/icons/hotel_icon_collection*
    computer/icons/*emule* computer/icons/*xmule* computer/icons/*quake* computer/icons/hacker* computer/icons/*gimp*
    computer/icons/*pingu* computer/icons/*debian* computer/icons/*/deb.png computer/icons/*gnome?.png
    computer/icons/*gnome.png computer/icons/*amsn* computer/icons/*ooo* computer/icons/icons_lumen*
    computer/icons/webicons* computer/icons/otto* computer/icons/free_buttons* computer/icons/button* *blueprint*"""


class Picture(NamedTuple):
    path: str
    label: str
    author: str
    title: str
    pixels: np.ndarray
    """uint8, SIZE SIZE 3."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, help="the folder `png` of the unpacked package")
    parser.add_argument("--download", action="store_true", help="get the package with apt")
    options = parser.parse_args()
    if options.download == (options.folder is not None):
        parser.error("give the folder, or --download")
    with tempfile.TemporaryDirectory() as scratch:
        write(collect(download(Path(scratch)) if options.download else options.folder))


def download(scratch: Path) -> Path:
    subprocess.run(["apt-get", "download", "openclipart-png"], cwd=scratch, check=True)
    subprocess.run(["dpkg-deb", "-x", *scratch.glob("*.deb"), scratch], check=True)
    return scratch / "usr" / "share" / "openclipart" / "png"


def collect(root: Path) -> list[Picture]:
    """The pictures that enter, by path. Links repeat a picture in a second category and are left out."""
    paths = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.png") if not path.is_symlink())
    labels = {path: label for path in paths if (label := label_of(path))}
    with ProcessPoolExecutor() as pool:
        found = pool.map(partial(read, root), labels, labels.values(), chunksize=16)
        return without_copies([picture for picture in found if picture is not None])


def label_of(path: str) -> str | None:
    if any(fnmatchcase(path, pattern) for pattern in EXCLUDED.split()):
        return None
    fits = (label for label, patterns in CLASSES.items() if any(fnmatchcase(path, p) for p in patterns.split()))
    return next(fits, None)


def read(root: Path, path: str, label: str) -> Picture | None:
    Image.MAX_IMAGE_PIXELS = LARGEST_PIXELS
    try:
        with Image.open(root / path) as image:
            author, title = image.info.get("Author", ""), image.info.get("Title", "")
            pixels = square(image.convert("RGBA"))
    except Image.DecompressionBombError:
        return None
    if pixels is None or not colorful(pixels):
        return None
    return Picture(path, label, tidy(author), tidy(title), pixels)


def tidy(text: str) -> str:
    """Without HTML entities, line breaks and e-mail addresses."""
    return " ".join(word for word in html.unescape(text).split() if "@" not in word)


def square(image: Image.Image) -> np.ndarray | None:
    """On white, cropped to the content, and fitted into the square with a margin; None if the content is tiny."""
    white = Image.new("RGBA", image.size, "white")
    image = Image.alpha_composite(white, image).convert("RGB")
    ink = np.asarray(image).min(axis=2) < 245
    rows, columns = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
    if len(rows) == 0:
        return None
    image = image.crop((columns[0], rows[0], columns[-1] + 1, rows[-1] + 1))
    short, long = sorted(image.size)
    if long < SIZE // 2 or long > 5 * short:
        return None
    inner = SIZE - 2 * MARGIN
    size = [max(1, round(side * inner / long)) for side in image.size]
    image = image.resize((size[0], size[1]), Image.Resampling.LANCZOS)
    canvas = Image.new("RGB", (SIZE, SIZE), "white")
    canvas.paste(image, ((SIZE - image.width) // 2, (SIZE - image.height) // 2))
    return np.asarray(canvas)


def colorful(pixels: np.ndarray) -> bool:
    """Whether an eighth of the drawing has color, or a quarter is shaded gray: neither line art nor a silhouette."""
    low, high = pixels.min(axis=2).astype(int), pixels.max(axis=2).astype(int)
    ink = low < 240
    if ink.mean() < 0.05:
        return False
    # Gray beside white or black is the smoothed edge of a line: shade is gray among grays.
    around = np.stack([np.roll(low, (y, x), (0, 1)) for y in (-1, 0, 1) for x in (-1, 0, 1)])
    shade = (low > 40) & (high < 225) & (around.max(axis=0) - around.min(axis=0) < 90)
    return bool((high - low > 40)[ink].mean() > 1 / 8 or shade[ink].mean() > 1 / 4)


# Copies and series


def thumbnails(pictures: list[Picture]) -> np.ndarray:
    """float32, n 16 16 3, in [0, 1]."""
    n, cell = len(pictures), SIZE // 16
    pixels = np.stack([p.pixels for p in pictures]).astype(np.float32) / 255
    return pixels.reshape(n, 16, cell, 16, cell, 3).mean(axis=(2, 4))


def differences(thumbs: np.ndarray) -> np.ndarray:
    """Distances of the ink, relative to how much ink there is, n n: 0 for equal pictures, 1.4 for ink elsewhere."""
    ink = (1 - thumbs).reshape(len(thumbs), -1).astype(np.float64)
    squares = (ink**2).sum(axis=1)
    return np.sqrt(np.maximum(0, squares[:, None] + squares - 2 * ink @ ink.T) / np.sqrt(np.outer(squares, squares)))


def shapes(thumbs: np.ndarray) -> np.ndarray:
    """Absolute correlations of the gray thumbnails, n n."""
    x = thumbs.mean(axis=3).reshape(len(thumbs), -1).astype(np.float64)
    x -= x.mean(axis=1, keepdims=True)
    x /= np.linalg.norm(x, axis=1, keepdims=True) + 1e-9
    return np.abs(x @ x.T)


def without_copies(pictures: list[Picture]) -> list[Picture]:
    """Of pictures that look the same, the first."""
    same = differences(thumbnails(pictures)) < SAME
    kept: list[int] = []
    for i in range(len(pictures)):
        if not same[i, kept].any():
            kept.append(i)
    return [pictures[i] for i in kept]


def series(path: str) -> str:
    """What the pictures of a series have in common: the folder, and the first word of the file name."""
    folder, _, name = path.rpartition("/")
    words = re.findall(r"[A-Z]?[a-z]{2,}|[A-Z]{2,}", name.removesuffix(".png"))
    return f"{folder}/{words[0].lower() if words else ''}"


def groups(pictures: list[Picture]) -> list[list[int]]:
    """Connected pictures: of one series, or near in looks."""
    parent = list(range(len(pictures)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = i = parent[parent[i]]
        return i

    first: dict[str, int] = {}
    for i, picture in enumerate(pictures):
        parent[root(i)] = root(first.setdefault(series(picture.path), i))
    thumbs = thumbnails(pictures)
    for i, j in np.argwhere((differences(thumbs) < NEAR) | (shapes(thumbs) > NEAR_SHAPE)):
        parent[root(i)] = root(j)
    members = defaultdict(list)
    for i in range(len(pictures)):
        members[root(i)].append(i)
    return list(members.values())


def split(pictures: list[Picture]) -> list[str]:
    """ "train" or "test" for each picture: whole groups, by hash, until each class has its share of test pictures."""
    quota = {label: TEST_SHARE * n for label, n in Counter(p.label for p in pictures).items()}
    sides = ["train"] * len(pictures)
    for group in sorted(groups(pictures), key=lambda g: blake2b(pictures[g[0]].path.encode()).digest()):
        counts = Counter(pictures[i].label for i in group)
        if all(n <= quota[label] for label, n in counts.items()):
            for i in group:
                sides[i] = "test"
                quota[pictures[i].label] -= 1
    return sides


# Output


def write(pictures: list[Picture]) -> None:
    classes = sorted({p.label for p in pictures})
    labels = [classes.index(p.label) for p in pictures]
    sides = split(pictures)
    images = [{"bytes": encoded(p.pixels), "path": p.path} for p in pictures]
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": classes}}
    columns = {
        "image": pa.array(images, pa.struct({"bytes": pa.binary(), "path": pa.string()})),
        "label": pa.array(labels, pa.int64()),
        "class": pa.array([p.label for p in pictures]),
        "split": pa.array(sides),
        "author": pa.array([p.author for p in pictures]),
        "title": pa.array([p.title for p in pictures]),
    }
    table = pa.table(columns, metadata={"huggingface": json.dumps({"info": {"features": features}})})
    TARGET.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, TARGET / "images.parquet", compression="zstd")
    (TARGET / "CREDITS").write_text(credits(pictures), encoding="utf-8")
    report(pictures, sides)


def encoded(pixels: np.ndarray) -> bytes:
    file = BytesIO()
    Image.fromarray(pixels).save(file, "WEBP", quality=QUALITY, method=6, use_sharp_yuv=True)
    return file.getvalue()


def credits(pictures: list[Picture]) -> str:
    authors = Counter(p.author or "(unknown)" for p in pictures)
    lines = [f"  {name}, {n}" for name, n in sorted(authors.items(), key=lambda a: a[0].lower())]
    return "\n".join([CREDITS_HEAD.format(len(pictures)), *lines, ""])


CREDITS_HEAD = """\
The images in images.parquet are {} pictures of the Open Clip Art Library, release 0.18,
http://www.openclipart.org, as packaged by Debian in openclipart-png (1:0.18+dfsg-19).

They are in the public domain. The contributors released their work under the Creative Commons Public Domain Dedication
(copyright-only dedication or public domain certification), reproduced in /usr/share/doc/openclipart-png/copyright of
the Debian package: the works "may be freely reproduced, distributed, transmitted, used, modified, built upon, or
otherwise exploited by anyone for any purpose, commercial or non-commercial, and in any way".

Changes: composited on white, cropped, resized to 64 by 64 pixels, stored as WebP. Things, brands and places that a
picture shows may have rights of their own.

The path in the collection, the author and the title of each picture are columns of images.parquet. The authors, as the
files name them, and how many pictures are theirs:
"""


def report(pictures: list[Picture], sides: list[str]) -> None:
    counts = Counter((p.label, side) for p, side in zip(pictures, sides, strict=True))
    for label in sorted({p.label for p in pictures}):
        print(f"{label:10} {counts[label, 'train']:5} train {counts[label, 'test']:5} test")
    size = (TARGET / "images.parquet").stat().st_size
    print(f"{len(pictures)} pictures, {sides.count('test')} of them for the test, {size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
