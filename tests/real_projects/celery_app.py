"""The Celery application of a project, for real_packages.py."""

import os

from celery import Celery

from pooled_serve import pooling

pooling.set_pool_size(2, max_outstanding=4)
pooling.apply_patch()

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "mysite.settings")
app = Celery("mysite", broker="filesystem://")
app.conf.broker_transport_options = {
    "data_folder_in": "in",
    "data_folder_out": "in",
    "processed_folder": "processed",
    "store_processed": False,
    "polling_interval": 0.05,
}


@app.task(name="work")  # type: ignore[untyped-decorator]
def task(number: int) -> None:
    from mysite.work import work  # type: ignore[import-not-found]

    work(number)
