"""The shop works: run `python manage.py test` here, with or without DATABASE_URL."""

import io
import logging
from decimal import Decimal
from unittest import mock

from django.core.management import call_command
from django.test import TestCase, override_settings
from django.urls import reverse

from shop import database_url
from store.models import Category, Order, Product
from store.orders import OutOfStockError, place_order

BUYER = {"name": "Ada", "email": "ada@example.com"}


def setUpModule() -> None:
    # Several tests want a refusal; Django would log each of them.
    logging.disable(logging.ERROR)


def tearDownModule() -> None:
    logging.disable(logging.NOTSET)


def seed(*options: str) -> str:
    output = io.StringIO()
    call_command("seed", *options, stdout=output)
    return output.getvalue()


def make_product(**fields: object) -> Product:
    category, _ = Category.objects.get_or_create(name="Desk", slug="desk")
    defaults = {"name": "Calm Oak Lamp", "price": Decimal("12.50"), "weight": 800, "stock": 1}
    return Product.objects.create(category=category, **defaults | fields)


class CheckoutTests(TestCase):
    def put_in_cart(self, product: Product, quantity: int) -> None:
        self.client.post(reverse("cart_put", args=[product.pk]), {"quantity": quantity})

    def test_takes_stock_and_shows_the_order(self) -> None:
        lamp, clock = make_product(stock=3), make_product(name="Merry Brass Clock", stock=5)
        self.put_in_cart(lamp, 2)
        self.put_in_cart(clock, 1)
        response = self.client.post(reverse("checkout"), BUYER, follow=True)
        self.assertContains(response, "Thank you, Ada!")
        self.assertContains(response, "37.50")
        lamp.refresh_from_db()
        clock.refresh_from_db()
        self.assertEqual((lamp.stock, clock.stock), (1, 4))
        self.assertContains(self.client.get(reverse("cart")), "Nothing in it yet")

    def test_the_last_item_is_sold_once(self) -> None:
        lamp = make_product(stock=1)
        self.put_in_cart(lamp, 1)
        place_order({lamp.pk: 1}, **BUYER)
        response = self.client.post(reverse("checkout"), BUYER)
        self.assertContains(response, "Calm Oak Lamp: none left.", status_code=409)
        self.assertEqual(Order.objects.count(), 1)

    def test_an_order_that_cannot_be_filled_takes_nothing(self) -> None:
        lamp, clock = make_product(stock=3), make_product(name="Merry Brass Clock", stock=0)
        with self.assertRaises(OutOfStockError):
            place_order({lamp.pk: 1, clock.pk: 1}, **BUYER)
        lamp.refresh_from_db()
        self.assertEqual(lamp.stock, 3)
        self.assertFalse(Order.objects.exists())

    def test_a_product_that_is_no_more_leaves_the_cart(self) -> None:
        lamp, clock = make_product(), make_product(name="Merry Brass Clock")
        self.put_in_cart(lamp, 1)
        self.put_in_cart(clock, 1)
        clock.delete()
        response = self.client.post(reverse("checkout"), BUYER)
        self.assertContains(response, "not sold any more", status_code=409)
        self.assertRedirects(
            self.client.post(reverse("checkout"), BUYER),
            reverse("order", args=[Order.objects.get().pk]),
        )

    def test_a_form_without_an_address_is_shown_again(self) -> None:
        self.put_in_cart(make_product(), 1)
        response = self.client.post(reverse("checkout"), {"name": "Ada"})
        self.assertContains(response, "This field is required")
        self.assertFalse(Order.objects.exists())

    def test_orders_show_only_to_who_placed_them(self) -> None:
        order = place_order({make_product().pk: 1}, **BUYER)
        self.assertEqual(self.client.get(reverse("order", args=[order.pk])).status_code, 404)


class PageTests(TestCase):
    def test_list_pages_and_categories(self) -> None:
        seed("--products=200")
        self.assertContains(self.client.get(reverse("index")), 'class="card"', count=24)
        self.assertContains(self.client.get(reverse("index"), {"page": 2}), "?page=3")
        first = Category.objects.earliest("name")
        self.assertContains(self.client.get(first.get_absolute_url()), first.products.first().name)

    def test_search_wants_every_word(self) -> None:
        make_product()
        self.assertContains(self.client.get(reverse("search"), {"q": "lamp CALM"}), "Calm Oak Lamp")
        self.assertContains(self.client.get(reverse("search"), {"q": "lamp red"}), "Nothing found")

    def test_delivery_quote(self) -> None:
        url = reverse("delivery", args=[make_product().pk])
        with self.settings(CARRIER_URL="", CARRIER_DELAY=0):
            self.assertContains(self.client.get(url), "At your door in 1 day.")

    @override_settings(CARRIER_URL="http://127.0.0.1:1/")
    def test_a_carrier_that_does_not_answer(self) -> None:
        response = self.client.get(reverse("delivery", args=[make_product().pk]))
        self.assertContains(response, "The carrier does not answer", status_code=502)

    def test_admin_and_its_style_sheet(self) -> None:
        page = self.client.get(reverse("admin:index"), follow=True)
        self.assertContains(page, "Django administration")
        self.assertEqual(self.client.get("/static/admin/css/base.css").status_code, 200)


class BenchTests(TestCase):
    @classmethod
    def setUpTestData(cls) -> None:
        seed("--products=30")

    def test_views_cost_the_queries_they_are_named_after(self) -> None:
        self.client.get("/bench/one")  # learns how many products there are
        for path, queries in {
            "plaintext": 0,
            "one": 1,
            "ten": 10,
            "objects": 1,
            "values?rows=7": 1,
            "update": 4,  # two of them SAVEPOINTs, as a test runs in a transaction
            "outside?ms=1": 2,
            "outside?ms=1&spread=5": 2,
        }.items():
            with self.subTest(path), self.assertNumQueries(queries):
                self.assertEqual(self.client.get(f"/bench/{path}").status_code, 200)

    def test_rows_are_the_same_as_objects_and_as_dicts(self) -> None:
        with mock.patch("random.randint", return_value=5), self.assertNumQueries(3):
            rows = self.client.get("/bench/objects").json()
            self.assertEqual(self.client.get("/bench/values?rows=20").json(), rows)
        self.assertEqual(len(rows), 20)
        self.assertEqual(len(rows[0]), 3)
        self.assertEqual(self.client.get("/bench/values?rows=many").status_code, 400)

    def test_sleep(self) -> None:
        self.assertEqual(self.client.get("/bench/sleep?ms=1").json(), {"slept": 0.001})
        self.assertEqual(self.client.get("/bench/sleep?ms=soon").status_code, 400)

    def test_seeding_twice_changes_nothing(self) -> None:
        before = list(Product.objects.values())
        self.assertIn("there already", seed("--if-empty"))
        seed("--products=30")
        names = [row["name"] for row in before]
        self.assertEqual(list(Product.objects.values_list("name", flat=True)), names)


class DatabaseUrlTests(TestCase):
    def test_mysql(self) -> None:
        parsed = database_url.parse("mysql://ada:p%40ss%2F@db.example:3307/sh%20op")
        self.assertEqual(
            [parsed[key] for key in ("USER", "PASSWORD", "HOST", "PORT", "NAME")],
            ["ada", "p@ss/", "db.example", "3307", "sh op"],
        )

    def test_socket(self) -> None:
        parsed = database_url.parse("mysql://ada@localhost/shop?unix_socket=/run/my.sock")
        self.assertEqual(parsed["HOST"], "/run/my.sock")

    def test_anything_else_is_refused_without_quoting_it(self) -> None:
        with self.assertRaisesMessage(ValueError, "not 'oracle'") as raised:
            database_url.parse("oracle://ada:secret@host/shop")
        self.assertNotIn("secret", str(raised.exception))
