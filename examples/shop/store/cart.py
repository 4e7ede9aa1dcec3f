"""The cart is a dictionary in the visitor's session: product id to quantity.

Sessions are JSON, whose keys are strings; the rest of the shop sees integers.
"""

from django.contrib.sessions.backends.base import SessionBase


def quantities(session: SessionBase) -> dict[int, int]:
    return {int(product_id): n for product_id, n in session.get("cart", {}).items()}


def put(session: SessionBase, product_id: int, quantity: int) -> None:
    """Set how many of a product are in the cart; 0 takes it out."""
    cart = session.get("cart", {})
    if quantity > 0:
        cart[str(product_id)] = quantity
    else:
        cart.pop(str(product_id), None)
    session["cart"] = cart


def empty(session: SessionBase) -> None:
    session.pop("cart", None)
