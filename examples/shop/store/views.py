from django.core.paginator import Paginator
from django.db.models import QuerySet
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.http import require_GET, require_POST

from store import carrier
from store import cart as carts
from store.forms import CheckoutForm, QuantityForm
from store.models import Category, Order, Product
from store.orders import OutOfStockError, place_order

PAGE_SIZE = 24


@require_GET
def index(request: HttpRequest) -> HttpResponse:
    return _product_list(request, Product.objects.all(), title="All products")


@require_GET
def category(request: HttpRequest, slug: str) -> HttpResponse:
    chosen = get_object_or_404(Category, slug=slug)
    return _product_list(request, chosen.products.all(), title=chosen.name, chosen=chosen)


@require_GET
def search(request: HttpRequest) -> HttpResponse:
    query = request.GET.get("q", "").strip()
    products = Product.objects.all()
    # More words only narrow the search further; a cap keeps the SQL short whatever is pasted.
    for word in query.split()[:8]:
        products = products.filter(name__icontains=word)
    return _product_list(request, products, title=f"Search: {query}", query=query)


def _product_list(
    request: HttpRequest, products: QuerySet[Product], **context: object
) -> HttpResponse:
    paginator = Paginator(products.select_related("category"), PAGE_SIZE)
    page = paginator.get_page(request.GET.get("page"))
    context |= {
        "page": page,
        "page_numbers": paginator.get_elided_page_range(page.number, on_each_side=1, on_ends=1),
        "categories": Category.objects.all(),
    }
    return render(request, "store/product_list.html", context)


@require_GET
def product(request: HttpRequest, pk: int) -> HttpResponse:
    found = get_object_or_404(Product.objects.select_related("category"), pk=pk)
    return render(request, "store/product.html", {"product": found})


@require_GET
def delivery(request: HttpRequest, pk: int) -> HttpResponse:
    """Two queries with a call to somebody else's server in between."""
    found = get_object_or_404(Product, pk=pk)
    try:
        quote = carrier.quote(found.weight)
    except carrier.CarrierError:
        return render(request, "store/delivery.html", {"product": found}, status=502)
    # The carrier took its time: promise only what is in stock now.
    found.refresh_from_db(fields=["stock"])
    return render(request, "store/delivery.html", {"product": found, "quote": quote})


@require_GET
def cart(request: HttpRequest) -> HttpResponse:
    return _cart_page(request, CheckoutForm())


@require_POST
def cart_put(request: HttpRequest, pk: int) -> HttpResponse:
    get_object_or_404(Product, pk=pk)
    form = QuantityForm(request.POST)
    if form.is_valid():
        carts.put(request.session, pk, form.cleaned_data["quantity"])
    return redirect("cart")


@require_POST
def checkout(request: HttpRequest) -> HttpResponse:
    quantities = carts.quantities(request.session)
    if not quantities:
        return redirect("cart")
    form = CheckoutForm(request.POST)
    if not form.is_valid():
        return _cart_page(request, form)
    try:
        placed = place_order(quantities, **form.cleaned_data)
    except OutOfStockError as error:
        form.add_error(None, str(error))
        return _cart_page(request, form, status=409)
    carts.empty(request.session)
    request.session["orders"] = [*request.session.get("orders", []), placed.pk]
    return redirect("order", placed.pk)


def _cart_page(request: HttpRequest, form: CheckoutForm, status: int = 200) -> HttpResponse:
    quantities = carts.quantities(request.session)
    lines = [(found, quantities[found.pk]) for found in Product.objects.filter(pk__in=quantities)]
    for gone in quantities.keys() - {found.pk for found, _ in lines}:
        carts.put(request.session, gone, 0)
    total = sum(found.price * quantity for found, quantity in lines)
    context = {"lines": lines, "total": total, "form": form}
    return render(request, "store/cart.html", context, status=status)


@require_GET
def order(request: HttpRequest, pk: int) -> HttpResponse:
    # Order numbers are easy to guess, so an order shows only to the session that placed it.
    if pk not in request.session.get("orders", []):
        raise Http404
    found = get_object_or_404(Order.objects.prefetch_related("lines__product"), pk=pk)
    return render(request, "store/order.html", {"order": found})
