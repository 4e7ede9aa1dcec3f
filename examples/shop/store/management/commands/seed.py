import random
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

from django.core.management.base import BaseCommand, CommandParser
from django.db import transaction
from django.utils.text import slugify

from store.models import Category, Order, Product

BATCH = 1000

# What is sold, and about how much the things of a category weigh (grams).
CATALOGUE = {
    "Baking": (900, ["Cake Tin", "Rolling Pin", "Mixing Bowl", "Bread Basket", "Cookie Cutter"]),
    "Bath": (700, ["Towel", "Soap Dish", "Bath Mat", "Shelf", "Mirror"]),
    "Bedding": (1800, ["Pillow", "Blanket", "Duvet", "Sheet", "Mattress Topper"]),
    "Bicycles": (1200, ["Bell", "Saddle", "Pannier", "Pump", "Lock"]),
    "Books": (450, ["Notebook", "Atlas", "Cookbook", "Diary", "Almanac"]),
    "Camping": (2500, ["Tent", "Sleeping Bag", "Stove", "Lantern", "Hammock"]),
    "Candles": (300, ["Candle", "Tealight", "Candlestick", "Lantern", "Snuffer"]),
    "Coffee": (800, ["Grinder", "Kettle", "Mug", "Filter", "Moka Pot"]),
    "Desk": (600, ["Lamp", "Pen Tray", "Clock", "Bookend", "Letter Rack"]),
    "Garden": (2200, ["Watering Can", "Planter", "Trowel", "Rake", "Bird Feeder"]),
    "Kitchen": (1100, ["Knife", "Chopping Board", "Saucepan", "Colander", "Ladle"]),
    "Lighting": (1500, ["Floor Lamp", "Pendant", "Wall Light", "Night Light", "Shade"]),
    "Music": (1300, ["Ukulele", "Tambourine", "Metronome", "Music Stand", "Harmonica"]),
    "Office": (1600, ["Chair", "Drawer", "Paper Tray", "Whiteboard", "Footrest"]),
    "Outdoor": (1000, ["Rucksack", "Flask", "Compass", "Walking Pole", "Rain Jacket"]),
    "Pets": (900, ["Dog Bed", "Cat Tree", "Food Bowl", "Lead", "Scratching Post"]),
    "Storage": (1900, ["Basket", "Crate", "Chest", "Shelf", "Coat Hook"]),
    "Tea": (500, ["Teapot", "Cup", "Strainer", "Caddy", "Tray"]),
    "Tools": (1400, ["Hammer", "Screwdriver", "Spirit Level", "Hand Saw", "Toolbox"]),
    "Toys": (400, ["Puzzle", "Spinning Top", "Kite", "Train", "Doll House"]),
}
MANNERS = (
    "Bright Calm Clever Cosy Dapper Gentle Handy Honest Humble Jolly Lively Lucky Merry Modest "
    "Nimble Patient Plucky Quiet Simple Snug Steady Sturdy Sunny Tidy Trusty"
)
MATERIALS = (
    "Amber Ash Bamboo Birch Brass Canvas Cherry Copper Cork Cotton Felt Flax Glass Juniper Leather "
    "Linen Maple Oak Pine Slate Steel Stone Walnut Willow Wool"
)


def make_products(count: int, categories: dict[str, Category]) -> Iterator[Product]:
    """The same products every time: what one person sees, another can look up."""
    rng = random.Random(2024)
    manners, materials = MANNERS.split(), MATERIALS.split()
    for number in range(1, count + 1):
        name, (grams, things) = rng.choice(list(CATALOGUE.items()))
        manner, material, thing = rng.choice(manners), rng.choice(materials), rng.choice(things)
        yield Product(
            # Ids without gaps, so that the views under /bench/ can draw one at random.
            id=number,
            category=categories[name],
            name=f"{manner} {material} {thing}",
            description=(
                f"This {thing.lower()} of {material.lower()} is for people who like things that "
                f"last. Number {number} in our catalogue."
            ),
            price=Decimal(rng.randint(200, 19_999)) / 100,
            weight=int(grams * rng.uniform(0.5, 2)),
            stock=rng.randint(0, 200),
        )


class Command(BaseCommand):
    help = "Fill the catalogue. What is there, orders included, is deleted unless --if-empty."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--products", type=int, default=10_000, metavar="N")
        parser.add_argument(
            "--if-empty", action="store_true", help="leave a catalogue that has products alone"
        )

    # All or nothing: an interrupted run must not pass for a filled catalogue.
    @transaction.atomic
    def handle(self, *args: object, products: int, if_empty: bool, **options: Any) -> None:
        if if_empty and Product.objects.exists():
            self.stdout.write(f"{Product.objects.count()} products are there already.")
            return
        for model in (Order, Product, Category):
            model.objects.all().delete()
        categories = {
            name: Category.objects.create(name=name, slug=slugify(name)) for name in CATALOGUE
        }
        catalogue = list(make_products(products, categories))
        for start in range(0, products, BATCH):
            self._show_progress(start, products)
            Product.objects.bulk_create(catalogue[start : start + BATCH])
        self._show_progress(products, products)
        self.stdout.write(f"{products} products in {len(categories)} categories.")

    def _show_progress(self, done: int, total: int) -> None:
        if self.stderr.isatty():
            bar = ("#" * (30 * done // total)).ljust(30, ".") if total else ""
            ending = "\n" if done == total else ""
            self.stderr.write(f"\r[{bar}] {done}/{total}", str, ending)
