from django.urls import path

from store import views

urlpatterns = [
    path("", views.index, name="index"),
    path("category/<slug:slug>/", views.category, name="category"),
    path("search/", views.search, name="search"),
    path("product/<int:pk>/", views.product, name="product"),
    path("product/<int:pk>/delivery/", views.delivery, name="delivery"),
    path("cart/", views.cart, name="cart"),
    path("cart/<int:pk>/", views.cart_put, name="cart_put"),
    path("checkout/", views.checkout, name="checkout"),
    path("order/<int:pk>/", views.order, name="order"),
]
