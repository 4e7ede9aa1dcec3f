"""Views with GeoDjango's fields."""

from typing import Any

from django.contrib.gis.db import models
from django.contrib.gis.geos import Point, Polygon
from django.db import connection
from django.http import HttpRequest, HttpResponse, JsonResponse


class Place(models.Model):
    name: "models.CharField[str, str]" = models.CharField(max_length=20)
    spot: "models.PointField[Any, Any]" = models.PointField()

    class Meta:
        app_label = "mysite"


def settle(request: HttpRequest) -> HttpResponse:
    with connection.schema_editor() as editor:
        editor.create_model(Place)
    for name, x, y in (("mill", 1, 1), ("field", 5, 5)):
        Place.objects.create(name=name, spot=Point(x, y, srid=4326))
    return HttpResponse()


def near(request: HttpRequest) -> HttpResponse:
    here = Polygon.from_bbox((0, 0, 2, 2))
    here.srid = 4326
    found = Place.objects.filter(spot__within=here)
    return JsonResponse([(place.name, place.spot.coords) for place in found], safe=False)
