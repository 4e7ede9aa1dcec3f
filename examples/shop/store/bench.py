"""Small views for tests, benchmarks and load.py: each does one thing with the database.

They answer to a plain GET, the update included, so that any load generator can drive them.
"""

import random
import time
from functools import cache

from django.core.exceptions import BadRequest
from django.db import connection, transaction
from django.db.models import F, Max, QuerySet
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import get_object_or_404, render
from django.urls import path

from store.models import Category, Product

MAX_NUMBER = 5000
COLUMNS = (
    *("id", "category_id", "name", "description", "price", "weight", "stock"),
    *("category__id", "category__name", "category__slug"),
)


@cache
def last_product_id() -> int:
    """Asked once per process, so that a view costs exactly the queries it is named after."""
    last = Product.objects.aggregate(last=Max("pk"))["last"]
    if last is None:
        raise Http404("no products: run manage.py seed")
    return last


def random_id() -> int:
    return random.randint(1, last_product_id())


def random_product() -> object:
    return get_object_or_404(Product.objects.values("id", "name", "stock"), pk=random_id())


def number(request: HttpRequest, name: str, default: int) -> int:
    """?name=NUMBER; capped, so that nobody can hang the server with it."""
    try:
        wanted = int(request.GET.get(name, default))
    except ValueError:
        raise BadRequest(f"{name} is a whole number") from None
    return min(max(wanted, 0), MAX_NUMBER)


def seconds(request: HttpRequest, name: str, default: int) -> float:
    """?name=MILLISECONDS as seconds."""
    return number(request, name, default) / 1000


def plaintext(request: HttpRequest) -> HttpResponse:
    """No database at all: what the server itself can do."""
    return HttpResponse("Hello, world!", content_type="text/plain")


def one(request: HttpRequest) -> HttpResponse:
    """One query."""
    return JsonResponse(random_product())


def ten(request: HttpRequest) -> HttpResponse:
    """Ten queries."""
    return JsonResponse([random_product() for _ in range(10)], safe=False)


def fortunes(request: HttpRequest) -> HttpResponse:
    """As TechEmpower's test of this name: all rows of a small table and one more that is not in
    it, sorted here, through a template that escapes."""
    rows = [*Category.objects.order_by(), Category(id=0, name="<script>alert('one more')</script>")]
    rows.sort(key=lambda row: row.name)
    return render(request, "store/fortunes.html", {"rows": rows})


def some_products(request: HttpRequest) -> QuerySet[Product]:
    """?rows= of them, ten columns each with their categories', from a random place on."""
    rows = number(request, "rows", default=20)
    first = random.randint(1, max(last_product_id() - rows, 1))
    return Product.objects.select_related("category").filter(pk__gte=first).order_by("pk")[:rows]


def objects(request: HttpRequest) -> HttpResponse:
    """A query of ?rows=20 rows of ten columns, as model instances."""
    rows = [[each.name, each.category.name, each.stock] for each in some_products(request)]
    return JsonResponse(rows, safe=False)


def values(request: HttpRequest) -> HttpResponse:
    """The same query, as dicts."""
    rows = some_products(request).values(*COLUMNS)
    answer = [[each["name"], each["category__name"], each["stock"]] for each in rows]
    return JsonResponse(answer, safe=False)


def update(request: HttpRequest) -> HttpResponse:
    """A transaction of two updates, +1 and -1: the sum of all stock never changes."""
    product_id = random_id()
    with transaction.atomic():
        Product.objects.filter(pk=product_id).update(stock=F("stock") + 1)
        Product.objects.filter(pk=product_id).update(stock=F("stock") - 1)
    return JsonResponse({"id": product_id})


def outside(request: HttpRequest) -> HttpResponse:
    """A query, ?ms= of waiting for someone else while the connection is idle, a query.

    The wait differs by up to ?spread= either way. Under load it should: clients who all wait
    equally long stay in step, and the server is flooded one moment and idle the next.
    """
    pause, spread = seconds(request, "ms", default=300), seconds(request, "spread", default=0)
    before = random_product()
    time.sleep(max(pause + random.uniform(-spread, spread), 0))
    return JsonResponse([before, random_product()], safe=False)


def sleep(request: HttpRequest) -> HttpResponse:
    """One query that takes ?ms= in the database: the connection is busy all the while."""
    pause = seconds(request, "ms", default=100)
    if connection.vendor == "mysql":
        with connection.cursor() as cursor:
            cursor.execute("SELECT SLEEP(%s)", [pause])
    else:
        time.sleep(pause)
    return JsonResponse({"slept": pause})


urlpatterns = [
    path(view.__name__, view, name=f"bench_{view.__name__}")
    for view in (plaintext, one, ten, fortunes, objects, values, update, outside, sleep)
]
