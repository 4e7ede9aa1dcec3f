"""Tests of a project, which test_patch.py lets Django's test runner run."""

from typing import TYPE_CHECKING

from django.db import connection, transaction
from django.test import TestCase, TransactionTestCase

if TYPE_CHECKING:
    Mixin = TestCase
else:
    Mixin = object


class Both(Mixin):
    def test_it_is_the_test_database(self) -> None:
        with connection.cursor() as cursor:
            cursor.execute("SELECT DATABASE()")
            self.assertTrue(cursor.fetchone()[0].startswith("test_"))
        self.assertEqual(type(connection.connection).__name__, "DatabaseSession")

    def test_it_writes(self) -> None:
        with connection.cursor() as cursor:
            cursor.execute("CREATE TEMPORARY TABLE temporary_one (n INT)")
            cursor.execute("INSERT INTO temporary_one VALUES (1)")
            cursor.execute("DROP TEMPORARY TABLE temporary_one")

    def test_a_view_that_needs_a_connection(self) -> None:
        self.assertEqual(self.client.get("/one").status_code, 200)


class InTransaction(Both, TestCase):
    def test_on_commit(self) -> None:
        with self.captureOnCommitCallbacks(execute=True) as calls:
            transaction.on_commit(lambda: None)
        self.assertEqual(len(calls), 1)


class WithoutTransaction(Both, TransactionTestCase):
    pass
