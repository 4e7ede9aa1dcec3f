"""As the README of django-db-pooling has it, with the bound that all contenders have."""

from contenders import WAIT
from django.conf import settings
from django_db_pooling import pooling

from shop.wsgi import application

__all__ = ["application"]

pooling.set_pool_size(settings.CONNECTIONS, max_outstanding=settings.CONNECTIONS, timeout=WAIT)
pooling.apply_patch()
