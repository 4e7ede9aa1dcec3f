from collections.abc import Mapping

from django.db import transaction

from store.models import Order, OrderLine, Product


class OutOfStockError(Exception):
    """Some products of an order are not there in the quantity asked for; str() is for customers."""


@transaction.atomic
def place_order(cart: Mapping[int, int], *, name: str, email: str) -> Order:
    """Take a cart (product id to quantity) out of stock: all of it, or raise OutOfStockError."""
    # Everyone locks in the same order, so two carts that share products wait for each other
    # instead of deadlocking.
    products = list(Product.objects.select_for_update().filter(pk__in=cart).order_by("pk"))
    if len(products) < len(cart):
        raise OutOfStockError("Something in your cart is not sold any more.")
    if short := [product for product in products if product.stock < cart[product.pk]]:
        raise OutOfStockError("; ".join(f"{p.name}: {p.stock or 'none'} left" for p in short) + ".")

    for product in products:
        product.stock -= cart[product.pk]
    Product.objects.bulk_update(products, ["stock"])
    order = Order.objects.create(name=name, email=email)
    OrderLine.objects.bulk_create(
        OrderLine(order=order, product=product, quantity=cart[product.pk], unit_price=product.price)
        for product in products
    )
    return order
