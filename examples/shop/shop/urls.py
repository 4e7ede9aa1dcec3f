from django.contrib import admin
from django.contrib.staticfiles.views import serve
from django.urls import include, path

urlpatterns = [
    path("", include("store.urls")),
    path("bench/", include("store.bench")),
    path("admin/", admin.site.urls),
    # The admin's style sheets, also with DEBUG off. Fine for a demo; a real site leaves static
    # files to a web server or a CDN, hence Django's word "insecure".
    path("static/<path:path>", serve, {"insecure": True}),
]
